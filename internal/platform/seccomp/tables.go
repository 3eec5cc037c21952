package seccomp

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// x32Bit marks the numbers of x32 calls, which come with x86-64's architecture.
const x32Bit = 0x40000000

// abi is one way to make system calls.
type abi struct {
	name   specs.Arch
	audit  uint32 // seccomp_data.arch
	column int    // of its numbers in syscalls
	narrow bool   // only the lower 32 bits of arguments are compared
	muxed  bool   // has socketcall and ipc beside the calls that they stand for
}

// syscall is a row of the table of numbers.
type syscall struct {
	name    string
	numbers [columns]uint32
}

// The columns of syscalls.
const (
	x8664 = iota
	i386
	x32
	aarch64
	arm
	columns
)

// abis are those of a build's processors; a kernel never sees another.
var abis = map[string][]abi{
	"amd64": {
		{name: specs.ArchX86_64, audit: unix.AUDIT_ARCH_X86_64, column: x8664},
		{name: specs.ArchX86, audit: unix.AUDIT_ARCH_I386, column: i386, narrow: true, muxed: true},
		{name: specs.ArchX32, audit: unix.AUDIT_ARCH_X86_64, column: x32, narrow: true},
	},
	"arm64": {
		{name: specs.ArchAARCH64, audit: unix.AUDIT_ARCH_AARCH64, column: aarch64},
		{name: specs.ArchARM, audit: unix.AUDIT_ARCH_ARM, column: arm, narrow: true},
	},
}

// noCall stands in syscalls where an ABI does not have the call.
const noCall = ^uint32(0)

// numbersOf returns the numbers of a call, as they are in seccomp_data.nr, by column;
// nil if no ABI has it.
func numbersOf(name string) *[columns]uint32 {
	i, ok := slices.BinarySearchFunc(syscalls[:], name, func(c syscall, name string) int { return strings.Compare(c.name, name) })
	if !ok {
		return nil
	}
	return &syscalls[i].numbers
}

// number returns the ABI's number of a call, if it has it.
func (a *abi) number(name string) (uint32, bool) {
	n := numbersOf(name)
	if n == nil || n[a.column] == noCall {
		return 0, false
	}
	return n[a.column], true
}

// socketcall and ipc are the numbers that the calls have as the first argument of those
// two (net.h, ipc.h).
var (
	socketcall = map[string]uint64{
		"socket": 1, "bind": 2, "connect": 3, "listen": 4, "accept": 5, "getsockname": 6, "getpeername": 7, "socketpair": 8,
		"send": 9, "recv": 10, "sendto": 11, "recvfrom": 12, "shutdown": 13, "setsockopt": 14, "getsockopt": 15,
		"sendmsg": 16, "recvmsg": 17, "accept4": 18, "recvmmsg": 19, "sendmmsg": 20,
	}
	ipc = map[string]uint64{
		"semop": 1, "semget": 2, "semctl": 3, "semtimedop": 4, "msgsnd": 11, "msgrcv": 12, "msgget": 13, "msgctl": 14,
		"shmat": 21, "shmdt": 22, "shmget": 23, "shmctl": 24,
	}
)
