// Command inside is the program of the containers that the differential test starts: it
// says what it finds, one "key<TAB>quoted value" a line, says that it is done, and stays
// until its standard input ends. It imports neither os nor what needs it: that package
// raises RLIMIT_NOFILE before main, and the test wants to see what the runtime set.
package main

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// done ends the report.
const done = "done\t\"\"\n"

var report strings.Builder

// say notes one finding.
func say(key, value string) {
	report.WriteString(strconv.Quote(key))
	report.WriteByte('\t')
	report.WriteString(strconv.Quote(value))
	report.WriteByte('\n')
}

func num(n int) string { return strconv.Itoa(n) }

// result names an error by its number.
func result(err error) string {
	switch e := err.(type) {
	case nil:
		return "ok"
	case syscall.Errno:
		if name := unix.ErrnoName(e); name != "" {
			return name
		}
		return "errno " + num(int(e))
	}
	return err.Error()
}

func env(name string) []string {
	v, _ := syscall.Getenv(name)
	return strings.Fields(v)
}

func main() {
	if len(env("INSIDE_HOLD")) > 0 { // outside: it is there for its namespaces
		await()
		return
	}
	process()
	descriptors()
	names()
	limits()
	privileges()
	scheduling()
	network()
	if len(env("INSIDE_NOT_ALONE")) == 0 { // in a mount namespace of its own
		tree("/", 0)
		for _, path := range touched {
			touch(path)
		}
		devices()
	}
	for _, path := range env("INSIDE_READ") {
		say("content "+path, content(path))
	}
	for _, path := range env("INSIDE_TOUCH") {
		touch(path)
	}
	calls()
	write(1, report.String()+done)
	if v, _ := syscall.Getenv("INSIDE_STDERR"); v != "" {
		write(2, v)
	}
	await()
	code := 0
	if v, _ := syscall.Getenv("INSIDE_CODE"); v != "" {
		code, _ = strconv.Atoi(v)
	}
	if v, _ := syscall.Getenv("INSIDE_SIGNAL"); v != "" {
		n, _ := strconv.Atoi(v)
		unix.Kill(unix.Getpid(), syscall.Signal(n))
	}
	syscall.Exit(code)
}

// await waits for the end of the standard input, or for a full stop from a terminal.
func await() {
	var b [64]byte
	for {
		n, err := syscall.Read(0, b[:])
		if err == syscall.EINTR {
			continue
		}
		if n <= 0 || b[0] == '.' {
			return
		}
	}
}

func write(fd int, s string) {
	for len(s) > 0 {
		n, err := syscall.Write(fd, []byte(s))
		if err == syscall.EINTR || err == syscall.EAGAIN {
			continue
		}
		if err != nil {
			return
		}
		s = s[n:]
	}
}
