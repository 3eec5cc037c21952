#include "textflag.h"

// As on amd64, by two words, as SP must be a multiple of 16: the variable is there twice.
TEXT ·entry(SB), NOSPLIT|NOFRAME, $0
	MOVD $167, R8            // prctl(PR_GET_TIMERSLACK)
	MOVD $30, R0
	SVC
	MOVD R0, ·slack(SB)
	MOVD $167, R8            // prctl(PR_SET_TIMERSLACK, …)
	MOVD $29, R0
	MOVD $1000000, R1
	SVC
	MOVD 0(RSP), R0
	MOVD RSP, R1
	ADD  R0<<3, R1, R2
	ADD  $16, R2
environment:
	MOVD (R2), R0
	ADD  $8, R2
	CBNZ R0, environment
	SUB  $8, R2              // the environment's end
	SUB  $16, R1, R3
	MOVD R3, RSP
down:
	MOVD (R1), R0
	MOVD R0, (R3)
	ADD  $8, R1
	ADD  $8, R3
	CMP  R1, R2
	BNE  down
	MOVD $·oneProcessor(SB), R0
	MOVD R0, (R3)
	MOVD R0, 8(R3)
	JMP  _rt0_arm64_linux(SB)

DATA ·oneProcessor+0(SB)/8, $"GOMAXPRO"
DATA ·oneProcessor+8(SB)/8, $"CS=01\x00\x00\x00"
GLOBL ·oneProcessor(SB), RODATA|NOPTR, $16
