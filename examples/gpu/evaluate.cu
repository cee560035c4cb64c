#include "../evaluate.cpp"
