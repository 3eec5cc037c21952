#include "textflag.h"

// The first thread's timer slack becomes what package sysmon wants, for all that it makes.
//
// At SP is the number of arguments, behind it the arguments, 0, the environment, 0, and the auxiliary
// vector, which stays. All before the environment's end moves down by a word.
TEXT ·entry(SB), NOSPLIT|NOFRAME, $0
	MOVL $157, AX            // prctl(PR_GET_TIMERSLACK)
	MOVL $30, DI
	SYSCALL
	MOVQ AX, ·slack(SB)
	MOVL $157, AX            // prctl(PR_SET_TIMERSLACK, …)
	MOVL $29, DI
	MOVL $1000000, SI
	SYSCALL
	MOVQ 0(SP), AX
	LEAQ 16(SP)(AX*8), DX
environment:
	MOVQ (DX), AX
	ADDQ $8, DX
	TESTQ AX, AX
	JNE  environment
	SUBQ $8, DX              // the environment's end
	MOVQ SP, SI
	SUBQ $8, SP
	MOVQ SP, DI
down:
	MOVQ (SI), AX
	MOVQ AX, (DI)
	ADDQ $8, SI
	ADDQ $8, DI
	CMPQ SI, DX
	JNE  down
	LEAQ ·oneProcessor(SB), AX
	MOVQ AX, (DI)
	JMP  _rt0_amd64_linux(SB)

DATA ·oneProcessor+0(SB)/8, $"GOMAXPRO"
DATA ·oneProcessor+8(SB)/8, $"CS=01\x00\x00\x00"
GLOBL ·oneProcessor(SB), RODATA|NOPTR, $16
