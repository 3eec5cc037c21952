package main

import (
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// process is what execve(2) handed over, and who we are.
func process() {
	for i, a := range args() {
		say("argv "+num(i), a)
	}
	cwd, err := syscall.Getwd()
	say("cwd", cwd+" "+result(err))
	say("umask", "0"+strconv.FormatInt(int64(unix.Umask(0)), 8))
	sid, _ := unix.Getsid(0)
	pgid, _ := unix.Getpgid(0)
	say("ids", "pid "+num(unix.Getpid())+" parent "+num(unix.Getppid())+" session "+num(sid)+" group "+num(pgid))
	id, err := unix.KeyctlInt(unix.KEYCTL_GET_KEYRING_ID, unix.KEY_SPEC_SESSION_KEYRING, 0, 0, 0)
	if err != nil {
		say("keyring", result(err))
	} else {
		s, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, id)
		say("keyring", s+" "+result(err))
	}
}

// args are read from the kernel: package os would hold them.
func args() []string {
	fd, err := syscall.Open("/proc/self/cmdline", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return []string{result(err)}
	}
	defer syscall.Close(fd)
	return strings.Split(strings.TrimSuffix(readAll(fd), "\x00"), "\x00")
}

func readAll(fd int) string {
	var out []byte
	b := make([]byte, 4096)
	for len(out) < 1<<20 {
		n, err := syscall.Read(fd, b)
		if err == syscall.EINTR {
			continue
		}
		if n <= 0 {
			break
		}
		out = append(out, b[:n]...)
	}
	return string(out)
}

// descriptors are the open ones, with what they are of.
func descriptors() {
	for fd := range 64 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil {
			continue
		}
		flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		status, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		kind := fileType(st.Mode)
		if kind == "anon" || st.Nlink == 0 && kind == "file" {
			continue // the runtime's own, of Go's poller
		}
		v := kind + " close-on-exec " + num(flags&unix.FD_CLOEXEC) + " access " + num(status&unix.O_ACCMODE) + " append " + num(status&unix.O_APPEND)
		if fd < 3 {
			v += " owner " + num(int(st.Uid)) + ":" + num(int(st.Gid))
			if w, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ); err == nil {
				v += " terminal " + num(int(w.Row)) + "x" + num(int(w.Col))
				if t, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
					v += " flags " + strconv.FormatUint(uint64(t.Iflag), 16) + " " + strconv.FormatUint(uint64(t.Oflag), 16) + " " + strconv.FormatUint(uint64(t.Lflag), 16)
				}
				pg, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
				v += " foreground " + num(pg) + " " + result(err)
			}
		}
		say("descriptor "+num(fd), v)
	}
}

func names() {
	var u unix.Utsname
	unix.Uname(&u)
	say("hostname", unix.ByteSliceToString(u.Nodename[:]))
	say("domainname", unix.ByteSliceToString(u.Domainname[:]))
	say("machine", unix.ByteSliceToString(u.Machine[:]))
}

func limits() {
	for i := range 16 {
		var r unix.Rlimit
		err := unix.Prlimit(0, i, nil, &r)
		say("limit "+num(i), strconv.FormatUint(r.Cur, 10)+" "+strconv.FormatUint(r.Max, 10)+" "+result(err))
	}
}

// privileges are identities, capabilities and what prctl(2) tells.
func privileges() {
	r, e, s := unix.Getresuid()
	say("uid", num(r)+" "+num(e)+" "+num(s))
	r, e, s = unix.Getresgid()
	say("gid", num(r)+" "+num(e)+" "+num(s))
	groups, err := unix.Getgroups()
	v := result(err)
	for _, g := range groups {
		v += " " + num(g)
	}
	say("groups", v)
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err = unix.Capget(&hdr, &data[0])
	hex := func(lo, hi uint32) string { return strconv.FormatUint(uint64(hi)<<32|uint64(lo), 16) }
	say("capabilities permitted", hex(data[0].Permitted, data[1].Permitted)+" "+result(err))
	say("capabilities effective", hex(data[0].Effective, data[1].Effective))
	say("capabilities inheritable", hex(data[0].Inheritable, data[1].Inheritable))
	var bounding, ambient uint64
	for c := range 64 {
		if n, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0); err == nil && n == 1 {
			bounding |= 1 << c
		}
		if n, err := unix.PrctlRetInt(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, uintptr(c), 0, 0); err == nil && n == 1 {
			ambient |= 1 << c
		}
	}
	say("capabilities bounding", strconv.FormatUint(bounding, 16))
	say("capabilities ambient", strconv.FormatUint(ambient, 16))
	for _, p := range []struct {
		name string
		op   int
	}{
		{"no new privileges", unix.PR_GET_NO_NEW_PRIVS}, {"secure bits", unix.PR_GET_SECUREBITS}, {"dumpable", unix.PR_GET_DUMPABLE},
		{"keep capabilities", unix.PR_GET_KEEPCAPS}, {"timer slack", unix.PR_GET_TIMERSLACK}, {"huge pages off", unix.PR_GET_THP_DISABLE},
	} {
		n, err := unix.PrctlRetInt(p.op, 0, 0, 0, 0)
		say(p.name, num(n)+" "+result(err))
	}
	n, err := unix.PrctlRetInt(unix.PR_GET_SPECULATION_CTRL, unix.PR_SPEC_STORE_BYPASS, 0, 0, 0)
	say("speculation", num(n)+" "+result(err))
	for _, op := range []struct {
		name string
		op   int
	}{{"parent death signal", unix.PR_GET_PDEATHSIG}, {"subreaper", unix.PR_GET_CHILD_SUBREAPER}} {
		var v int32
		err := unix.Prctl(op.op, uintptr(unsafe.Pointer(&v)), 0, 0, 0)
		say(op.name, num(int(v))+" "+result(err))
	}
}

func scheduling() {
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		say("scheduler", result(err))
	} else {
		say("scheduler", "policy "+num(int(attr.Policy))+" flags "+num(int(attr.Flags))+" nice "+num(int(attr.Nice))+" priority "+num(int(attr.Priority))+
			" runtime "+num(int(attr.Runtime))+" deadline "+num(int(attr.Deadline))+" period "+num(int(attr.Period)))
	}
	n, _, e := syscall.Syscall(unix.SYS_IOPRIO_GET, 1, 0, 0)
	say("io priority", num(int(n>>13))+" "+num(int(n&0x1fff))+" "+errno(e))
	n, _, e = syscall.Syscall(unix.SYS_PERSONALITY, 0xffffffff, 0, 0)
	say("personality", strconv.FormatUint(uint64(n), 16)+" "+errno(e))
	var set unix.CPUSet
	err = unix.SchedGetaffinity(0, &set)
	v := ""
	for c := range 64 {
		if set.IsSet(c) {
			v += " " + num(c)
		}
	}
	say("processors", result(err)+v)
	var mode int32
	var nodes [16]uint64
	_, _, e = syscall.Syscall6(unix.SYS_GET_MEMPOLICY, uintptr(unsafe.Pointer(&mode)), uintptr(unsafe.Pointer(&nodes)), 1024, 0, 0, 0)
	say("memory policy", num(int(mode))+" "+strconv.FormatUint(nodes[0], 16)+" "+errno(e))
}

func errno(e syscall.Errno) string {
	if e == 0 {
		return "ok"
	}
	return result(e)
}

// network is which interfaces there are, and whether they are up.
func network() {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		say("network", result(err))
		return
	}
	defer unix.Close(fd)
	for _, name := range append([]string{"lo"}, env("INSIDE_INTERFACES")...) {
		req, err := unix.NewIfreq(name)
		if err != nil {
			continue
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
			say("interface "+name, result(err))
			continue
		}
		v := "up " + num(int(req.Uint16())&unix.IFF_UP)
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFADDR, req); err == nil {
			if a, err := req.Inet4Addr(); err == nil {
				v += " address " + num(int(a[0])) + "." + num(int(a[1])) + "." + num(int(a[2])) + "." + num(int(a[3]))
			}
		}
		say("interface "+name, v)
	}
}
