package pod

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// defaultCapabilities are what a container has unless its manifest says otherwise:
// the set that the field's engines have in common.
var defaultCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// allCapabilities is every capability of capabilities(7).
var allCapabilities = []string{
	"CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_AUDIT_WRITE", "CAP_BLOCK_SUSPEND", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_KILL", "CAP_LEASE", "CAP_LINUX_IMMUTABLE", "CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_MKNOD", "CAP_NET_ADMIN",
	"CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_RAW", "CAP_PERFMON", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP",
	"CAP_SETUID", "CAP_SYSLOG", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYS_MODULE", "CAP_SYS_NICE",
	"CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_WAKE_ALARM",
}

// possible leaves out what this machine does not have to give.
var possible = sync.OnceValue(func() []string {
	raw, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(raw)) {
		if hex, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			if err != nil {
				break
			}
			var have []string
			for i, name := range capabilityNumbers {
				if mask&(1<<i) != 0 {
					have = append(have, name)
				}
			}
			slices.Sort(have)
			return have
		}
	}
	return allCapabilities
})

// capabilityNumbers is the order of linux/capability.h.
var capabilityNumbers = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
	"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
	"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
	"CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// capabilities applies what is added and dropped to the default set. ALL comes first,
// on either side.
func capabilities(sec *ContainerSecurity) ([]string, error) {
	if sec.Privileged {
		return possible(), nil
	}
	set := make(map[string]bool)
	for _, c := range defaultCapabilities {
		set[c] = true
	}
	all := func(list []string) bool {
		return slices.ContainsFunc(list, func(c string) bool { return capabilityName(c) == "ALL" })
	}
	if all(sec.AddCapabilities) {
		for _, c := range possible() {
			set[c] = true
		}
	}
	if all(sec.DropCapabilities) {
		clear(set)
	}
	for i, list := range [][]string{sec.AddCapabilities, sec.DropCapabilities} {
		for _, c := range list {
			c = capabilityName(c)
			if c == "ALL" {
				continue
			}
			if !slices.Contains(allCapabilities, c) {
				return nil, errs.New(errs.Invalid, "there is no capability %s; see capabilities(7)", c)
			}
			set[c] = i == 0
		}
	}
	have := []string{}
	for c, on := range set {
		if on {
			have = append(have, c)
		}
	}
	slices.Sort(have)
	return have, nil
}

// capabilityName is the kernel's name of a capability that a manifest names.
func capabilityName(c string) string {
	c = strings.ToUpper(c)
	if c != "ALL" && !strings.HasPrefix(c, "CAP_") {
		c = "CAP_" + c
	}
	return c
}

var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
	"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
}

var readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// profiles caches the default profile as it resolves for a set of capabilities: that
// takes milliseconds, and there are few sets.
var profiles sync.Map // of string to *specs.LinuxSeccomp

// confine sets the seccomp profile, and refuses what this kernel cannot do.
func confine(in specInput, s *specs.Spec, caps []string) error {
	pod, sec := &in.Pod.Security, &in.Container.Security
	if sec.AppArmor == nil {
		sec = &ContainerSecurity{}
		*sec = in.Container.Security
		sec.AppArmor = pod.AppArmor
	}
	if a := sec.AppArmor; a != nil && a.Type == "Localhost" {
		if _, err := os.Stat("/sys/module/apparmor"); err != nil {
			return errs.New(errs.Unsupported, "container %s asks for the AppArmor profile %s, and this kernel has no AppArmor", in.Container.Name, a.Path)
		}
		s.Process.ApparmorProfile = a.Path
	}
	se := in.Container.Security.SELinuxOptions
	if se == nil {
		se = pod.SELinuxOptions
	}
	if se != nil {
		if _, err := os.Stat("/sys/fs/selinux"); err != nil {
			return errs.New(errs.Unsupported, "container %s asks for an SELinux context, and this kernel has no SELinux; leave seLinuxOptions out", in.Container.Name)
		}
		s.Process.SelinuxLabel = strings.Join([]string{se.User, se.Role, se.Type, se.Level}, ":")
	}
	profile := in.Container.Security.Seccomp
	if profile == nil {
		profile = pod.Seccomp
	}
	switch {
	case in.Container.Security.Privileged || profile != nil && profile.Type == "Unconfined":
		return nil
	case profile == nil || profile.Type == "RuntimeDefault":
		key := strings.Join(caps, ",")
		if p, ok := profiles.Load(key); ok {
			s.Linux.Seccomp = p.(*specs.LinuxSeccomp)
			return nil
		}
		p, err := seccomp.GetDefaultProfile(s)
		if err != nil {
			return err
		}
		profiles.Store(key, p)
		s.Linux.Seccomp = p
		return nil
	case profile.Type == "Localhost":
		if !filepath.IsLocal(profile.Path) {
			return errs.New(errs.Invalid, "seccomp profile %q must be a path below %s", profile.Path, in.SeccompDir)
		}
		root, err := os.OpenRoot(in.SeccompDir)
		if err != nil {
			return errs.New(errs.NotFound, "seccomp profile %s: %w", profile.Path, err)
		}
		defer root.Close()
		raw, err := root.ReadFile(profile.Path)
		if err != nil {
			return errs.New(errs.NotFound, "seccomp profile %s below %s: %w", profile.Path, in.SeccompDir, err)
		}
		return loadProfile(s, profile.Path, raw)
	case profile.Type == "File":
		raw, err := os.ReadFile(profile.Path)
		if err != nil {
			return errs.New(errs.NotFound, "seccomp profile %s: %w", profile.Path, err)
		}
		return loadProfile(s, profile.Path, raw)
	}
	return errs.New(errs.Invalid, "seccomp profile type %q is none of RuntimeDefault, Localhost, Unconfined", profile.Type)
}

func loadProfile(s *specs.Spec, path string, raw []byte) (err error) {
	if s.Linux.Seccomp, err = seccomp.LoadProfile(string(raw), s); err != nil {
		return errs.New(errs.Invalid, "seccomp profile %s: %w", path, err)
	}
	return nil
}
