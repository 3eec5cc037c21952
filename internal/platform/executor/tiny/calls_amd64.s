#include "textflag.h"

// The program of Program: it makes one system call after another from the table at
// 0x400800, whose entries are number, six arguments, and 1 where a result above zero
// ends it, 2 where failing does not matter. It tells the socket of the call that fails,
// and its error. All jumps are
// relative, and only the stack is written.
TEXT ·callsCode(SB), NOSPLIT|NOFRAME, $0
	MOVQ  $0x400800, BX

next:
	MOVQ  0(BX), AX
	MOVQ  8(BX), DI
	MOVQ  16(BX), SI
	MOVQ  24(BX), DX
	MOVQ  32(BX), R10
	MOVQ  40(BX), R8
	MOVQ  48(BX), R9
	SYSCALL
	CMPQ  AX, $0
	JLT   failed
	JEQ   more
	CMPQ  56(BX), $1
	JEQ   out

more:
	ADDQ  $64, BX
	JMP   next

failed:
	CMPQ  56(BX), $2
	JEQ   more
	SUBQ  $32, SP
	MOVQ  $0x78, 0(SP)
	MOVQ  BX, 8(SP)
	MOVQ  AX, 16(SP)
	MOVL  $1, AX          // write(3, …, 24)
	MOVL  $3, DI
	MOVQ  SP, SI
	MOVL  $24, DX
	SYSCALL

out:
	MOVL  $231, AX        // exit_group(0)
	XORL  DI, DI
	SYSCALL
	JMP   out

DATA ·callsAddr(SB)/8, $·callsCode(SB)
GLOBL ·callsAddr(SB), RODATA, $8
