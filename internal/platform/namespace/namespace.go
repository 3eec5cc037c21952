// Package namespace makes namespaces that no process has to stay in, and enters them.
//
// A namespace lives as long as something refers to it: a process in it, or a mount of its
// file in /proc. Pinned namespaces are mounted, so a pod needs no process that does
// nothing. Namespaces belong to threads: those here are made and entered on threads of
// their own, which end afterwards unless they could go back.
package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
)

// Kind is a kind of namespace that can be pinned. Mount namespaces cannot: nothing here
// shares them.
type Kind string

const (
	Net Kind = "net"
	IPC Kind = "ipc"
	UTS Kind = "uts"
	// PID is pinned by PinProcess only: a PID namespace begins with its first process and
	// takes no more once that has ended.
	PID Kind = "pid"
	// User is pinned where Options.Users are given: it owns the others.
	User Kind = "user"
)

var flags = map[Kind]int{Net: unix.CLONE_NEWNET, IPC: unix.CLONE_NEWIPC, UTS: unix.CLONE_NEWUTS}

// Options say what new namespaces begin with.
type Options struct {
	// Hostname is that of a new UTS namespace; "" leaves the host's.
	Hostname string
	// Sysctls, like net.ipv4.ip_unprivileged_port_start, are written inside the
	// namespaces. Only those that belong to a pinned kind are allowed.
	Sysctls map[string]string
	// Users, where given, are the mappings of a user namespace that is made and pinned
	// too, to which the others belong.
	Users *IDMaps
}

var (
	afterMade    = fault.New("namespace.pin.made")
	afterFirst   = fault.New("namespace.pin.first-mounted")
	afterUnmount = fault.New("namespace.unpin.first-unmounted")
)

// Pin makes the namespaces of those kinds and mounts each at dir/<kind>. The loopback
// interface of a new network namespace is up. It is idempotent: those that are pinned
// already are kept as they are, and one that is mounted is complete.
func Pin(dir string, kinds []Kind, o Options) error {
	if err := o.check(kinds); err != nil {
		return fmt.Errorf("pin namespaces at %s: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pin namespaces: %w", err)
	}
	var missing []Kind
	var unshare int
	for _, k := range kinds {
		flag, ok := flags[k]
		if !ok {
			return errs.New(errs.Invalid, "pin namespaces at %s: kind %q cannot be pinned", dir, k)
		}
		pinned, err := Pinned(filepath.Join(dir, string(k)))
		if err != nil {
			return fmt.Errorf("pin namespaces: %w", err)
		}
		if !pinned {
			missing = append(missing, k)
			unshare |= flag
		}
	}
	make := pin
	if o.Users != nil {
		pinned, err := Pinned(filepath.Join(dir, string(User)))
		if err != nil {
			return fmt.Errorf("pin namespaces: %w", err)
		}
		if pinned && len(missing) == 0 {
			return nil
		}
		// They belong together: what was cut off is made anew, all of it.
		if err := Unpin(dir); err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("pin namespaces: %w", err)
		}
		make, missing, unshare = pinOwned, kinds, 0
		for _, k := range kinds {
			unshare |= flags[k]
		}
	} else if len(missing) == 0 {
		return nil
	}
	if err := OnThread(func() error { return make(dir, missing, unshare, o) }); err != nil {
		return fmt.Errorf("pin namespaces at %s: %w", dir, err)
	}
	return nil
}

func pin(dir string, kinds []Kind, unshare int, o Options) error {
	if err := unix.Unshare(unshare); err != nil {
		return fmt.Errorf("make %v: %w", kinds, err)
	}
	if err := furnish(kinds, o, func(_ Kind, fn func() error) error { return fn() }); err != nil {
		return err
	}
	afterMade.Hit()
	for _, k := range kinds {
		if err := bind("/proc/thread-self/ns/"+string(k), filepath.Join(dir, string(k))); err != nil {
			return err
		}
		afterFirst.Hit()
	}
	return nil
}

// furnish gives new namespaces, which the thread is in, what they begin with. What as runs
// is done as whoever may set that kind's values.
func furnish(kinds []Kind, o Options, as func(Kind, func() error) error) error {
	if slices.Contains(kinds, UTS) && o.Hostname != "" {
		if err := unix.Sethostname([]byte(o.Hostname)); err != nil {
			return fmt.Errorf("set host name %s: %w", o.Hostname, err)
		}
	}
	if slices.Contains(kinds, Net) {
		if err := LoopbackUp(); err != nil {
			return fmt.Errorf("bring up the loopback interface: %w", err)
		}
	}
	return setSysctls(kinds, o.Sysctls, as)
}

func bind(from, to string) error {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_RDONLY, 0o400)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", to, err)
	}
	return nil
}

// PinProcess mounts the PID namespace of a process at dir/pid. It is idempotent. The
// namespace is of use as long as its first process lives.
func PinProcess(dir string, pid int) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pin PID namespace: %w", err)
	}
	to := filepath.Join(dir, string(PID))
	from := fmt.Sprintf("/proc/%d/ns/pid", pid)
	pinned, err := Pinned(to)
	if err == nil && pinned {
		var a, b unix.Stat_t
		if unix.Stat(from, &a) == nil && unix.Stat(to, &b) == nil && a.Ino == b.Ino {
			return nil
		}
		err = unmount(to) // another's, of a first process that is gone
	}
	if err == nil {
		err = bind(from, to)
	}
	if err != nil {
		return fmt.Errorf("pin PID namespace of %d: %w", pid, err)
	}
	return nil
}

// Pinned tells whether a namespace is mounted at path.
func Pinned(path string) (bool, error) {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	return st.Type == unix.NSFS_MAGIC, nil
}

// Unpin takes away what Pin and PinProcess made at dir, and dir itself, which must have
// nothing else in it. Namespaces end once no process is in them. It is idempotent.
func Unpin(dir string) error {
	for _, k := range []Kind{User, Net, IPC, UTS, PID} {
		path := filepath.Join(dir, string(k))
		if err := unmount(path); err != nil {
			return fmt.Errorf("unpin namespaces: %w", err)
		}
		afterUnmount.Hit()
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("unpin namespaces: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin namespaces: %w", err)
	}
	return nil
}

// unmount takes away every namespace that is mounted at path: two callers at once may
// both have mounted one.
func unmount(path string) error {
	for {
		pinned, err := Pinned(path)
		if err != nil || !pinned {
			return err
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// Do runs fn inside the network namespace at path, on a thread of its own. Goroutines
// that fn starts are not inside, and neither is anything that it does after it returned.
func Do(path string, fn func() error) error {
	return onThread(func(leave func()) error {
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer home.Close()
		ns, err := os.Open(path)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err != nil {
			leave()
			kind := errs.Internal
			if errors.Is(err, os.ErrNotExist) {
				kind = errs.NotFound
			}
			return errs.New(kind, "enter network namespace %s: %w", path, err)
		}
		err = fn()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			leave()
		} // else the thread ends with its goroutine
		return err
	})
}

func (o *Options) check(kinds []Kind) error {
	if len(o.Hostname) > 64 {
		return errs.New(errs.Invalid, "host name %q is longer than 64 bytes", o.Hostname)
	}
	for name := range o.Sysctls {
		k, path := sysctl(name)
		if k == "" || strings.Contains(path, "..") {
			return errs.New(errs.Invalid, "sysctl %s is not of any namespace: it would change the host", name)
		}
		if !slices.Contains(kinds, k) {
			return errs.New(errs.Invalid, "sysctl %s needs a %s namespace of the pod's own: it would change the host", name, k)
		}
	}
	return nil
}

// LoopbackUp brings up the loopback interface of the calling thread's network namespace.
func LoopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return err
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}
