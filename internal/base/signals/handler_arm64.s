#include "textflag.h"

// The kernel calls it with the signal's number in R0, and has it return to restorer.
TEXT ·handler(SB), NOSPLIT|NOFRAME, $0
	SUB  $16, RSP
	MOVB R0, 0(RSP)
	MOVD $64, R8          // write(pipeFD, …, 1)
	MOVW ·pipeFD(SB), R0
	MOVD RSP, R1
	MOVD $1, R2
	SVC
	ADD  $16, RSP
	RET

TEXT ·restorer(SB), NOSPLIT|NOFRAME, $0
	MOVD $139, R8         // rt_sigreturn
	SVC
	BRK  $0

DATA ·handlerAddr(SB)/8, $·handler(SB)
GLOBL ·handlerAddr(SB), RODATA, $8
DATA ·restorerAddr(SB)/8, $·restorer(SB)
GLOBL ·restorerAddr(SB), RODATA, $8
