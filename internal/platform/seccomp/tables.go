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
	socketcall // the first argument of that call, by which 32-bit x86 makes this one as well (net.h)
	ipc        // the same (ipc.h)
	columns
)

// The ABIs of a build's processors; a kernel never sees another.
var (
	abisAMD64 = []abi{
		{name: specs.ArchX86_64, audit: unix.AUDIT_ARCH_X86_64, column: x8664},
		{name: specs.ArchX86, audit: unix.AUDIT_ARCH_I386, column: i386, narrow: true, muxed: true},
		{name: specs.ArchX32, audit: unix.AUDIT_ARCH_X86_64, column: x32, narrow: true},
	}
	abisARM64 = []abi{
		{name: specs.ArchAARCH64, audit: unix.AUDIT_ARCH_AARCH64, column: aarch64},
		{name: specs.ArchARM, audit: unix.AUDIT_ARCH_ARM, column: arm, narrow: true},
	}
)

// abis are those of a processor by Go's name, none if it is not known. The native one is first.
func abis(goarch string) []abi {
	switch goarch {
	case "amd64":
		return abisAMD64
	case "arm64":
		return abisARM64
	}
	return nil
}

// noCall stands in syscalls where an ABI does not have the call.
const noCall = ^uint32(0)

// numbersOf returns the numbers of a call, as they are in seccomp_data.nr, by column;
// nil if no ABI has it.
func numbersOf(name string) *[columns]uint32 {
	var c cursor
	return c.numbersOf(name)
}

// cursor looks calls up one after the other. Most profiles name them in the table's order and
// leave few out, so it looks behind the last one first.
type cursor struct{ next int }

func (c *cursor) numbersOf(name string) *[columns]uint32 {
	const near = 4
	i, ok := c.next, false
	for end := min(i+near, len(syscalls)); i < end && !ok; i++ {
		ok = syscalls[i].name == name
	}
	if i--; !ok {
		if i, ok = slices.BinarySearchFunc(syscalls[:], name, func(c syscall, name string) int { return strings.Compare(c.name, name) }); !ok {
			return nil
		}
	}
	c.next = i + 1
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
