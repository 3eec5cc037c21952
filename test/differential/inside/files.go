package main

import (
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func fileType(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFCHR:
		return "character"
	case unix.S_IFBLK:
		return "block"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFLNK:
		return "link"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "anon"
}

// describe says what is at path, without following a link.
func describe(path string, st *unix.Stat_t) string {
	v := fileType(st.Mode) + " 0" + strconv.FormatUint(uint64(st.Mode&0o7777), 8) + " " + num(int(st.Uid)) + ":" + num(int(st.Gid))
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		v += " " + num(int(unix.Major(st.Rdev))) + ":" + num(int(unix.Minor(st.Rdev)))
	case unix.S_IFREG:
		v += " size " + num(int(st.Size))
	case unix.S_IFLNK:
		b := make([]byte, 4096)
		if n, err := unix.Readlink(path, b); err == nil {
			v += " " + string(b[:n])
		}
	}
	return v
}

// tree lists what is below dir.
func tree(dir string, depth int) {
	for _, name := range list(dir) {
		path := strings.TrimSuffix(dir, "/") + "/" + name
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			say("tree "+path, result(err))
			continue
		}
		say("tree "+path, describe(path, &st))
		var fs unix.Statfs_t
		if st.Mode&unix.S_IFMT != unix.S_IFDIR || depth > 6 || unix.Statfs(path, &fs) != nil {
			continue
		}
		switch fs.Type { // whose files the kernel makes up
		case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC:
			continue
		}
		tree(path, depth+1)
	}
}

// list returns the names in a directory in their order; one that says why it cannot.
func list(dir string) (names []string) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return []string{"?" + result(err)}
	}
	defer unix.Close(fd)
	b := make([]byte, 8192)
	for {
		n, err := unix.ReadDirent(fd, b)
		if err != nil || n <= 0 {
			break
		}
		_, _, names = unix.ParseDirent(b[:n], -1, names)
	}
	slices.Sort(names)
	return names
}

func content(path string) string {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return result(err)
	}
	defer unix.Close(fd)
	return strings.TrimSpace(readAll(fd))
}

// touched are paths of which the reports say whether they can be read and written: what
// runtimes mask and make read-only, and what they had better not leave writable.
var touched = []string{
	"/", "/proc", "/sys", "/dev", "/dev/shm", "/dev/mqueue", "/dev/pts", "/dev/console", "/sys/fs/cgroup", "/sys/firmware", "/sys/kernel",
	"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/interrupts", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
	"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/net/ipv4/ip_forward", "/proc/self/mem", "/proc/1/environ",
	"/etc/passwd", "/tmp",
}

// touch tries to read from a path and to open it for writing, or to make a file in it.
func touch(path string) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		say("touch "+path, "stat "+result(err))
		return
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		n := len(list(path))
		v := "empty "
		if n > 0 {
			v = "something "
		}
		name := path + "/.inside"
		fd, err := unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if err == nil {
			unix.Close(fd)
			unix.Unlink(name)
		}
		say("touch "+path, v+"create "+result(err))
		return
	}
	v := ""
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	v += "open " + result(err)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFCHR {
		var b [16]byte
		n, err := unix.Read(fd, b[:])
		v += " read " + result(err)
		if n == 0 {
			v += " nothing"
		}
	}
	if err == nil {
		unix.Close(fd)
	}
	fd, err = unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	v += " write " + result(err)
	if err == nil {
		unix.Close(fd)
	}
	say("touch "+path, v)
}

// devices tries which nodes can be made and opened: mknod(2) and the device cgroup.
func devices() {
	for _, d := range []struct {
		name  string
		mode  uint32
		major uint32
		minor uint32
	}{
		{"null", unix.S_IFCHR, 1, 3}, {"zero", unix.S_IFCHR, 1, 5}, {"mem", unix.S_IFCHR, 1, 1}, {"kmsg", unix.S_IFCHR, 1, 11},
		{"tty0", unix.S_IFCHR, 4, 0}, {"ttyS0", unix.S_IFCHR, 4, 64}, {"console", unix.S_IFCHR, 5, 1}, {"ptmx", unix.S_IFCHR, 5, 2},
		{"fuse", unix.S_IFCHR, 10, 229}, {"tun", unix.S_IFCHR, 10, 200}, {"loop-control", unix.S_IFCHR, 10, 237}, {"pts0", unix.S_IFCHR, 136, 0},
		{"loop0", unix.S_IFBLK, 7, 0}, {"disk", unix.S_IFBLK, 254, 0}, {"whiteout", unix.S_IFCHR, 0, 0},
	} {
		path := "/tmp/.device-" + d.name
		err := unix.Mknod(path, d.mode|0o600, int(unix.Mkdev(d.major, d.minor)))
		v := "mknod " + result(err)
		if err == nil {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
			v += " open " + result(err)
			if err == nil {
				unix.Close(fd)
			}
			unix.Unlink(path)
		}
		say("device "+d.name, v)
	}
}

// calls makes system calls whose arguments are no good, so that nothing comes of them but
// an error. A seccomp filter or a lack of capabilities gives another one.
func calls() {
	const bad = ^uintptr(0)
	for _, c := range []struct {
		name string
		nr   uintptr
		args [6]uintptr
	}{
		{"mkdirat", unix.SYS_MKDIRAT, [6]uintptr{bad, 1, 0}},
		{"renameat2", unix.SYS_RENAMEAT2, [6]uintptr{bad, 1, bad, 1, 0}},
		{"symlinkat", unix.SYS_SYMLINKAT, [6]uintptr{1, bad, 1}},
		{"fchmodat", unix.SYS_FCHMODAT, [6]uintptr{bad, 1, 0}},
		{"fchmodat2", unix.SYS_FCHMODAT2, [6]uintptr{bad, 1, 0, 0}},
		{"setxattr", unix.SYS_SETXATTR, [6]uintptr{1, 1, 1, 1, 0}},
		{"mount", unix.SYS_MOUNT, [6]uintptr{1, 1, 1, 0, 0}},
		{"umount2", unix.SYS_UMOUNT2, [6]uintptr{1, 0}},
		{"pivot_root", unix.SYS_PIVOT_ROOT, [6]uintptr{1, 1}},
		{"open_tree", unix.SYS_OPEN_TREE, [6]uintptr{bad, 1, 1}},
		{"move_mount", unix.SYS_MOVE_MOUNT, [6]uintptr{bad, 1, bad, 1, 0}},
		{"fsopen", unix.SYS_FSOPEN, [6]uintptr{1, 0}},
		{"mount_setattr", unix.SYS_MOUNT_SETATTR, [6]uintptr{bad, 1, 0, 1, 0}},
		{"unshare", unix.SYS_UNSHARE, [6]uintptr{0}},
		{"unshare user", unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWUSER | 1}},
		{"setns", unix.SYS_SETNS, [6]uintptr{bad, 0}},
		{"clone3", unix.SYS_CLONE3, [6]uintptr{1, 0}},
		{"ptrace", unix.SYS_PTRACE, [6]uintptr{bad, 0, 0, 0}},
		{"process_vm_readv", unix.SYS_PROCESS_VM_READV, [6]uintptr{0, 0, 0, 0, 0, 1}},
		{"kcmp", unix.SYS_KCMP, [6]uintptr{0, 0, 100, 0, 0}},
		{"bpf", unix.SYS_BPF, [6]uintptr{100, 1, 0}},
		{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, [6]uintptr{1, 0, 0, bad, 0}},
		{"init_module", unix.SYS_INIT_MODULE, [6]uintptr{1, 0, 1}},
		{"finit_module", unix.SYS_FINIT_MODULE, [6]uintptr{bad, 1, 0}},
		{"delete_module", unix.SYS_DELETE_MODULE, [6]uintptr{1, 0}},
		{"kexec_load", unix.SYS_KEXEC_LOAD, [6]uintptr{0, 100, 1, bad}},
		{"reboot", unix.SYS_REBOOT, [6]uintptr{0, 0, 0}},
		{"swapon", unix.SYS_SWAPON, [6]uintptr{1, 0}},
		{"acct", unix.SYS_ACCT, [6]uintptr{1}},
		{"syslog", unix.SYS_SYSLOG, [6]uintptr{bad, 0, 0}},
		{"settimeofday", unix.SYS_SETTIMEOFDAY, [6]uintptr{1, 0}},
		{"clock_settime", unix.SYS_CLOCK_SETTIME, [6]uintptr{0, 1}},
		{"adjtimex", unix.SYS_ADJTIMEX, [6]uintptr{1}},
		{"sethostname", unix.SYS_SETHOSTNAME, [6]uintptr{1, bad}},
		{"setdomainname", unix.SYS_SETDOMAINNAME, [6]uintptr{1, bad}},
		{"chroot", unix.SYS_CHROOT, [6]uintptr{1}},
		{"quotactl", unix.SYS_QUOTACTL, [6]uintptr{bad, 1, 0, 0}},
		{"add_key", unix.SYS_ADD_KEY, [6]uintptr{1, 1, 0, 0, 0}},
		{"keyctl", unix.SYS_KEYCTL, [6]uintptr{1000, 0, 0, 0, 0}},
		{"request_key", unix.SYS_REQUEST_KEY, [6]uintptr{1, 1, 0, 0}},
		{"userfaultfd", unix.SYS_USERFAULTFD, [6]uintptr{bad}},
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, [6]uintptr{0, 1}},
		{"mbind", unix.SYS_MBIND, [6]uintptr{1, 1, 100, 0, 0, 0}},
		{"set_mempolicy", unix.SYS_SET_MEMPOLICY, [6]uintptr{100, 0, 0}},
		{"move_pages", unix.SYS_MOVE_PAGES, [6]uintptr{0, 0, 0, 0, 0, 100}},
		{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, [6]uintptr{bad, 1, 0}},
		{"name_to_handle_at", unix.SYS_NAME_TO_HANDLE_AT, [6]uintptr{bad, 1, 1, 1, 0}},
		{"fanotify_init", unix.SYS_FANOTIFY_INIT, [6]uintptr{bad, 0}},
		{"socket vsock", unix.SYS_SOCKET, [6]uintptr{40, 100, 0}},
		{"socket alg", unix.SYS_SOCKET, [6]uintptr{38, 100, 0}},
		{"socket netlink", unix.SYS_SOCKET, [6]uintptr{16, 100, 0}},
		{"socket packet", unix.SYS_SOCKET, [6]uintptr{17, 100, 0}},
		{"personality", unix.SYS_PERSONALITY, [6]uintptr{0xffffffff}},
		{"memfd_create", unix.SYS_MEMFD_CREATE, [6]uintptr{1, 0}},
		{"memfd_secret", unix.SYS_MEMFD_SECRET, [6]uintptr{1}},
		{"pidfd_open", unix.SYS_PIDFD_OPEN, [6]uintptr{0, 0}},
		{"pidfd_getfd", unix.SYS_PIDFD_GETFD, [6]uintptr{bad, 0, 0}},
		{"landlock_create_ruleset", unix.SYS_LANDLOCK_CREATE_RULESET, [6]uintptr{1, 1, 0}},
		{"seccomp", unix.SYS_SECCOMP, [6]uintptr{100, 0, 0}},
		{"sched_setattr", unix.SYS_SCHED_SETATTR, [6]uintptr{0, 0, 0}},
		{"setpriority", unix.SYS_SETPRIORITY, [6]uintptr{100, 0, 0}},
		{"ioprio_set", unix.SYS_IOPRIO_SET, [6]uintptr{100, 0, 0}},
		{"getrandom", unix.SYS_GETRANDOM, [6]uintptr{1, 8, 0}},
		{"lookup_dcookie", unix.SYS_LOOKUP_DCOOKIE, [6]uintptr{0, 1, 0}},
		{"vmsplice", unix.SYS_VMSPLICE, [6]uintptr{bad, 1, 0, 0}},
		{"futex_waitv", unix.SYS_FUTEX_WAITV, [6]uintptr{1, 0, 0, 0, 0}},
		{"cachestat", unix.SYS_CACHESTAT, [6]uintptr{bad, 1, 1, 0}},
		{"statmount", unix.SYS_STATMOUNT, [6]uintptr{1, 1, 0, bad}},
		{"listmount", unix.SYS_LISTMOUNT, [6]uintptr{1, 1, 0, bad}},
		{"newest", 468, [6]uintptr{bad, bad, bad, bad, bad, bad}},
		{"none", 900, [6]uintptr{}},
	} {
		_, _, e := syscall.RawSyscall6(c.nr, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
		say("call "+c.name, errno(e))
	}
}
