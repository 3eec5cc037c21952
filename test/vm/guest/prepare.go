package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/test/vm/boot"
)

type mountPoint struct {
	source, target, fs string
	flags              uintptr
	data               string
}

func mountAll(list []mountPoint) error {
	for _, m := range list {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.fs, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.fs, m.target, err)
		}
	}
	return nil
}

// prepare leaves the process in a root that looks like the host's, with a kernel that
// has only cgroup v2.
func prepare(c *boot.Config) error {
	const secure = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := mountAll([]mountPoint{
		{"proc", "/proc", "proc", secure, ""},
		{"sysfs", "/sys", "sysfs", secure, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	}); err != nil {
		return err
	}
	for _, f := range c.BootModules {
		if err := load(f); err != nil {
			return err
		}
	}
	// The devices of a module appear after it was loaded, not with it.
	if err := wait("the shared filesystem", func() error {
		os.MkdirAll("/lower", 0o755)
		return unix.Mount(boot.Tag, "/lower", "virtiofs", unix.MS_RDONLY, "")
	}); err != nil {
		return err
	}
	if err := wait("the serial port", func() error {
		f, err := openPort()
		if err == nil {
			f.Close()
		}
		return err
	}); err != nil {
		return err
	}
	if err := mountAll([]mountPoint{{"tmpfs", "/rw", "tmpfs", 0, "mode=0755"}}); err != nil {
		return err
	}
	for _, d := range []string{"/rw/upper", "/rw/work", "/root"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", "/root", "overlay", 0, "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work"); err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	for _, d := range []string{"dev", "proc", "sys"} {
		if err := os.MkdirAll("/root/"+d, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("/"+d, "/root/"+d, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move /%s: %w", d, err)
		}
	}
	self, err := os.ReadFile("/init")
	if err != nil {
		return err
	}
	// The kernel's helper threads share this process's root, so that they find modprobe.
	if err := errors.Join(unix.Chdir("/root"), unix.Mount("/root", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/")); err != nil {
		return fmt.Errorf("change to the root: %w", err)
	}
	if err := mountAll([]mountPoint{
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, ""},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"},
		{"mqueue", "/dev/mqueue", "mqueue", secure, ""},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", secure, "nsdelegate"},
		{"bpf", "/sys/fs/bpf", "bpf", secure, ""},
		{"securityfs", "/sys/kernel/security", "securityfs", secure, ""},
		{"tmpfs", boot.Dir + "/tmp", "tmpfs", 0, "mode=1777"},
	}); err != nil {
		return err
	}
	for link, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		os.Symlink(to, "/dev/"+link)
	}
	if err := os.WriteFile(boot.Dir+"/init", self, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"modprobe", "unit"} {
		if err := os.Symlink("init", boot.Dir+"/"+name); err != nil {
			return err
		}
	}
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := os.WriteFile(boot.Dir+boot.ConfigFile, b, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/kernel/modprobe", []byte(boot.Dir+"/modprobe"), 0); err != nil {
		return err
	}
	for _, m := range c.Modules {
		if err := modprobe(m); err != nil {
			return err
		}
	}
	return loopbackUp()
}

// wait tries until f works, for ten seconds.
func wait(what string, f func() error) error {
	var err error
	for range 500 {
		if err = f(); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("%s did not appear: %w", what, err)
}

func load(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if filepath.Ext(file) != ".ko" {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil && err != unix.EEXIST {
		return fmt.Errorf("load module %s: %w", file, err)
	}
	return nil
}

// modprobe loads a module by its name or alias, with what it depends on. What the
// kernel has built in is in no file, and no error.
func modprobe(name string) error {
	c, err := readConfig(boot.Dir + boot.ConfigFile)
	if err != nil {
		return err
	}
	f, err := os.Open(c.Index)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	x := &boot.Index{}
	if err := json.Unmarshal(b, x); err != nil {
		return err
	}
	m, ok := x.Resolve(name)
	if !ok {
		return nil
	}
	for _, file := range x.Order(m) {
		if err := load(file); err != nil {
			return err
		}
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	_, err = net.InterfaceByName("lo")
	return err
}
