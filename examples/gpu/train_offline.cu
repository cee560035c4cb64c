#include "../train_offline.cpp"
