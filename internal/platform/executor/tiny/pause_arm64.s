#include "textflag.h"

// The program of a pause process: see tiny.go and pause_amd64.s.
TEXT ·pauseCode(SB), NOSPLIT|NOFRAME, $0
	SUB  $16, RSP
	MOVD $0x14002, R1    // SIGINT, SIGTERM, SIGCHLD
	MOVD R1, 0(RSP)
	MOVD $0, R0          // rt_sigprocmask(SIG_BLOCK, set, 0, 8)
	MOVD RSP, R1
	MOVD $0, R2
	MOVD $8, R3
	MOVD $135, R8
	SVC

reap:
	MOVD $-1, R0         // wait4(-1, 0, WNOHANG, 0)
	MOVD $0, R1
	MOVD $1, R2
	MOVD $0, R3
	MOVD $260, R8
	SVC
	CMP  $0, R0
	BGT  reap

wait:
	MOVD RSP, R0         // rt_sigtimedwait(set, 0, 0, 8)
	MOVD $0, R1
	MOVD $0, R2
	MOVD $8, R3
	MOVD $137, R8
	SVC
	CMP  $17, R0
	BEQ  reap
	CMP  $2, R0
	BEQ  out
	CMP  $15, R0
	BNE  wait

out:
	MOVD $0, R0          // exit_group(0)
	MOVD $94, R8
	SVC
	B    out

DATA ·pauseAddr(SB)/8, $·pauseCode(SB)
GLOBL ·pauseAddr(SB), RODATA, $8
