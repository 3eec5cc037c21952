#include "textflag.h"

// reserve needs more stack than there is when main begins, and uses none of it.
TEXT ·reserve(SB), 0, $32768-0
	RET
