package seccomp

import (
	"runtime"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Actions are those that a profile may name.
func Actions() []specs.LinuxSeccompAction {
	return []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActKill, specs.ActKillProcess, specs.ActKillThread,
		specs.ActLog, specs.ActNotify, specs.ActTrace, specs.ActTrap}
}

// Operators are those that conditions on arguments may have.
func Operators() []specs.LinuxSeccompOperator {
	return []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpLessEqual, specs.OpLessThan,
		specs.OpMaskedEqual, specs.OpNotEqual}
}

// Archs are the architectures whose calls this build filters.
func Archs() []specs.Arch {
	var list []specs.Arch
	for _, a := range abis(runtime.GOARCH) {
		list = append(list, a.name)
	}
	return list
}

// Flags are the flags that a profile may name, and those that this kernel has.
func Flags() (known, supported []specs.LinuxSeccompFlag) {
	for _, f := range []struct {
		name specs.LinuxSeccompFlag
		bit  uintptr
	}{
		{"SECCOMP_FILTER_FLAG_TSYNC", unix.SECCOMP_FILTER_FLAG_TSYNC},
		{specs.LinuxSeccompFlagLog, unix.SECCOMP_FILTER_FLAG_LOG},
		{specs.LinuxSeccompFlagSpecAllow, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
		{specs.LinuxSeccompFlagWaitKillableRecv, unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV | unix.SECCOMP_FILTER_FLAG_NEW_LISTENER},
	} {
		known = append(known, f.name)
		// A flag that the kernel knows gets it to look for the filter, which is not there.
		_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, f.bit, uintptr(unsafe.Pointer(nil)))
		if errno == unix.EFAULT {
			supported = append(supported, f.name)
		}
	}
	return known, supported
}
