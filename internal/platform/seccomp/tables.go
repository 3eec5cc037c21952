package seccomp

import (
	"sync"

	"github.com/elastic/go-seccomp-bpf/arch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// x32Bit marks the numbers of x32 calls, which come with x86-64's architecture.
const x32Bit = 0x40000000

// abi is one way to make system calls.
type abi struct {
	name    specs.Arch
	audit   uint32                   // seccomp_data.arch
	numbers func() map[string]uint32 // by name, as they are in seccomp_data.nr; made when first asked for
	narrow  bool                     // only the lower 32 bits of arguments are compared
	muxed   bool                     // has socketcall and ipc beside the calls that they stand for
}

// abis are those of a build's processors; a kernel never sees another.
var abis = map[string][]abi{
	"amd64": {
		{name: specs.ArchX86_64, audit: unix.AUDIT_ARCH_X86_64, numbers: numbersOf(arch.X86_64, nil)},
		{name: specs.ArchX86, audit: unix.AUDIT_ARCH_I386, numbers: numbersOf(arch.I386, nil), narrow: true, muxed: true},
		{name: specs.ArchX32, audit: unix.AUDIT_ARCH_X86_64, numbers: numbersOf(arch.X32, map[string]int{
			// Calls that x86-64 alone has (syscall_64.tbl).
			"_sysctl": 0, "create_module": 0, "epoll_ctl_old": 0, "epoll_wait_old": 0, "get_kernel_syms": 0, "get_thread_area": 0,
			"map_shadow_stack": 0, "nfsservctl": 0, "query_module": 0, "set_thread_area": 0, "uselib": 0, "vserver": 0,
		}), narrow: true},
	},
	"arm64": {
		{name: specs.ArchAARCH64, audit: unix.AUDIT_ARCH_AARCH64, numbers: numbersOf(arch.AARCH64, map[string]int{
			// The kernel's name, which the profiles use.
			"newfstatat": 79, "fstatat": 0,
			// Where the generic table leaves room for an architecture's own calls.
			"arch_specific_syscall": 0,
			// What only processors of 32 bits have (asm-generic/unistd.h).
			"clock_gettime64": 0, "clock_settime64": 0, "clock_adjtime64": 0, "clock_getres_time64": 0, "clock_nanosleep_time64": 0,
			"timer_gettime64": 0, "timer_settime64": 0, "timerfd_gettime64": 0, "timerfd_settime64": 0, "utimensat_time64": 0,
			"pselect6_time64": 0, "ppoll_time64": 0, "io_pgetevents_time64": 0, "recvmmsg_time64": 0, "mq_timedsend_time64": 0,
			"mq_timedreceive_time64": 0, "semtimedop_time64": 0, "rt_sigtimedwait_time64": 0, "futex_time64": 0,
			"sched_rr_get_interval_time64": 0,
		})},
		{name: specs.ArchARM, audit: unix.AUDIT_ARCH_ARM, numbers: numbersOf(arch.ARM, nil), narrow: true},
	},
}

// numbersOf inverts the table of an architecture. Of a name that stands there twice the
// higher number counts: x32 replaces calls of x86-64 by some of its own, from 512 on.
// fixes say what the table has wrong, 0 that there is no such call.
func numbersOf(info *arch.Info, fixes map[string]int) func() map[string]uint32 {
	return sync.OnceValue(func() map[string]uint32 { return invert(info, fixes) })
}

func invert(info *arch.Info, fixes map[string]int) map[string]uint32 {
	numbers := make(map[string]uint32, len(info.SyscallNumbers))
	for nr, name := range info.SyscallNumbers {
		numbers[name] = max(numbers[name], uint32(nr|info.SeccompMask))
	}
	for name, nr := range fixes {
		if delete(numbers, name); nr != 0 {
			numbers[name] = uint32(nr | info.SeccompMask)
		}
	}
	return numbers
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
