package namespace

import (
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// SetSysctls writes those of values that belong to a namespace of one of the kinds, for the
// namespaces that the thread is in (Do).
func SetSysctls(kinds []Kind, values map[string]string) error {
	return setSysctls(kinds, values, func(_ Kind, write func() error) error { return write() })
}

func setSysctls(kinds []Kind, values map[string]string, as func(Kind, func() error) error) error {
	for name, value := range values {
		if k, path := sysctl(name); slices.Contains(kinds, k) {
			if err := as(k, func() error { return os.WriteFile("/proc/sys/"+path, []byte(value), 0) }); err != nil {
				if errors.Is(err, os.ErrNotExist) {
					return errs.New(errs.Unsupported, "set sysctl %s: this kernel does not have it", name)
				}
				return errs.New(errs.Invalid, "set sysctl %s=%s: %w", name, value, err)
			}
		}
	}
	return nil
}

// sysctl returns the kind of namespace that a name belongs to, "" if to none, and its path.
func sysctl(name string) (Kind, string) {
	path := SysctlPath(name)
	if !IsLocal(path) {
		return "", ""
	}
	return SysctlKind(path), path
}

// SysctlPath turns a name with dots into a path below /proc/sys. In a name whose first separator
// is a slash, slashes separate and dots are dots (sysctl.d(5)).
func SysctlPath(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '/' {
		return name
	}
	return strings.NewReplacer(".", "/", "/", ".").Replace(name)
}

// IsLocal tells whether a sysctl's path goes down only: net/../kernel/core_pattern begins like
// one of a network namespace and is the host's (CVE-2022-0811 was another way to name it).
func IsLocal(path string) bool {
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

// SysctlKind returns the kind of namespace that a sysctl belongs to, by its path, "" if to none:
// then it is the host's.
func SysctlKind(path string) Kind {
	switch {
	case strings.HasPrefix(path, "net/"):
		return Net
	case path == "kernel/hostname" || path == "kernel/domainname":
		return UTS
	case strings.HasPrefix(path, "fs/mqueue/"), slices.Contains(ipcSysctls, path):
		return IPC
	}
	return ""
}

var ipcSysctls = []string{"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shmall", "kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced"}
