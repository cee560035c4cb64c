#include "../prepare_hidden_states.cpp"
