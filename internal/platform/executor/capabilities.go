package executor

import (
	"slices"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// capNames are the capabilities in the order of their numbers (capabilities(7)).
var capNames = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK",
	"CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN",
	"CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE",
	"CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
	"CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

const capSysAdmin = 1 << unix.CAP_SYS_ADMIN

// bounds are the capabilities that the kernel knows, and this process's bounding set.
var bounds = sync.OnceValue(func() (b struct{ known, set uint64 }) {
	for c := range capNames {
		in, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if err == nil {
			b.known |= 1 << c
			b.set |= uint64(in) << c
		}
	}
	return b
})

// ownCaps are the capabilities that this process may give away: what is in its permitted
// and its bounding set.
var ownCaps = sync.OnceValue(func() uint64 {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return 0
	}
	return (uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32) & bounds().set
})

type capSets struct{ bounding, effective, permitted, inheritable, ambient uint64 }

// caps are the capabilities that the container may have. The root of a user namespace has all
// that the kernel knows in it, whatever its maker has.
func (b *builder) caps() uint64 {
	if b.user != nil {
		return bounds().known
	}
	return ownCaps()
}

// capMasks translates the five sets. What cannot be granted is left out and a warning
// each, as the specification wants it: capabilities that this kernel does not know or
// this process does not have itself, and those that the rules of the sets forbid
// (capabilities(7)).
func capMasks(c *specs.LinuxCapabilities, own uint64) (s capSets, warnings []string) {
	if c == nil {
		return s, nil
	}
	var lacking []string
	mask := func(names []string) (m uint64) {
		for _, name := range names {
			i := slices.Index(capNames, name)
			if i >= 0 && own&(1<<i) != 0 {
				m |= 1 << i
			} else if !slices.Contains(lacking, name) {
				lacking = append(lacking, name)
			}
		}
		return m
	}
	s.bounding, s.effective, s.permitted = mask(c.Bounding), mask(c.Effective), mask(c.Permitted)
	s.inheritable, s.ambient = mask(c.Inheritable), mask(c.Ambient)
	if len(lacking) > 0 {
		warnings = append(warnings, "capabilities that this machine or its kernel lacks are left out: "+strings.Join(lacking, ", "))
	}
	within := func(set *uint64, allowed uint64, rule string) {
		if over := *set &^ allowed; over != 0 {
			var names []string
			for i, name := range capNames {
				if over&(1<<i) != 0 {
					names = append(names, name)
				}
			}
			warnings = append(warnings, rule+"; left out: "+strings.Join(names, ", "))
			*set &= allowed
		}
	}
	within(&s.effective, s.permitted, "an effective capability has to be permitted")
	within(&s.inheritable, s.bounding, "an inheritable capability has to be in the bounding set")
	within(&s.ambient, s.permitted&s.inheritable, "an ambient capability has to be permitted and inheritable")
	return s, warnings
}
