// The same source again, in the other encoding.
#define FAQUANT_EVEX
#include "isa/avxvnni.cpp"
