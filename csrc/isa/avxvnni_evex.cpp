// The same source in the other encoding.
#define FAQUANT_EVEX
#include "isa/avxvnni.cpp"
