#include "textflag.h"

// The kernel calls it with the signal's number in DI, and has it return to restorer.
TEXT ·handler(SB), NOSPLIT|NOFRAME, $0
	SUBQ $16, SP
	MOVB DI, 0(SP)
	MOVL $1, AX           // write(pipeFD, …, 1)
	MOVL ·pipeFD(SB), DI
	MOVQ SP, SI
	MOVL $1, DX
	SYSCALL
	ADDQ $16, SP
	RET

TEXT ·restorer(SB), NOSPLIT|NOFRAME, $0
	MOVL $15, AX          // rt_sigreturn
	SYSCALL
	INT  $3

DATA ·handlerAddr(SB)/8, $·handler(SB)
GLOBL ·handlerAddr(SB), RODATA, $8
DATA ·restorerAddr(SB)/8, $·restorer(SB)
GLOBL ·restorerAddr(SB), RODATA, $8
