#include "textflag.h"

// See calls_amd64.s.
TEXT ·callsCode(SB), NOSPLIT|NOFRAME, $0
	MOVD  $0x400, R20
	LSL   $12, R20
	ADD   $0x1f0, R20
	MOVD  0(R20), R19

next:
	MOVD  0(R19), R8
	MOVD  8(R19), R0
	MOVD  16(R19), R1
	MOVD  24(R19), R2
	MOVD  32(R19), R3
	MOVD  40(R19), R4
	MOVD  48(R19), R5
	SVC
	MOVHU 58(R19), R21
	MOVHU 62(R19), R22
	ADD   R0, R22
	CBZ   R22, then
	CMP   $0, R0
	BEQ   then
	MOVHU 56(R19), R21
	BLT   then
	MOVHU 60(R19), R21

then:
	ADD   $64, R19
	TST   $0x300, R21
	BNE   end
	LSL   $6, R21
	ADD   R21, R19
	B     next

end:
	TST   $0x200, R21
	BEQ   out
	MOVD  0(R20), R1
	SUB   R1, R19
	SUB   $32, RSP
	MOVD  $0x78, R1
	MOVD  R1, 0(RSP)
	MOVD  R19, 8(RSP)
	MOVD  R0, 16(RSP)
	MOVD  8(R20), R0     // write(channel, …, 24)
	MOVD  RSP, R1
	MOVD  $24, R2
	MOVD  $64, R8
	SVC

out:
	AND   $0xff, R21, R0 // exit_group(status)
	MOVD  $94, R8
	SVC
	B     out

DATA ·callsAddr(SB)/8, $·callsCode(SB)
GLOBL ·callsAddr(SB), RODATA, $8
