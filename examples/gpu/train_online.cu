#include "../train_online.cpp"
