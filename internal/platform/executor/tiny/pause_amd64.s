#include "textflag.h"

// The program of a pause process: see tiny.go. It uses nothing but its registers and
// the 16 bytes of stack that it takes; it is copied, so all jumps are relative.
TEXT ·pauseCode(SB), NOSPLIT|NOFRAME, $0
	SUBQ $16, SP
	MOVQ $0x14002, AX    // SIGINT, SIGTERM, SIGCHLD
	MOVQ AX, 0(SP)
	MOVL $14, AX         // rt_sigprocmask(SIG_BLOCK, set, 0, 8)
	XORL DI, DI
	MOVQ SP, SI
	XORL DX, DX
	MOVL $8, R10
	SYSCALL

reap:
	MOVL $61, AX         // wait4(-1, 0, WNOHANG, 0)
	MOVQ $-1, DI
	XORL SI, SI
	MOVL $1, DX
	XORL R10, R10
	SYSCALL
	CMPQ AX, $0
	JGT  reap

wait:
	MOVL $128, AX        // rt_sigtimedwait(set, 0, 0, 8)
	MOVQ SP, DI
	XORL SI, SI
	XORL DX, DX
	MOVL $8, R10
	SYSCALL
	CMPQ AX, $17
	JEQ  reap
	CMPQ AX, $2
	JEQ  out
	CMPQ AX, $15
	JNE  wait

out:
	MOVL $231, AX        // exit_group(0)
	XORL DI, DI
	SYSCALL
	JMP  out

DATA ·pauseAddr(SB)/8, $·pauseCode(SB)
GLOBL ·pauseAddr(SB), RODATA, $8
