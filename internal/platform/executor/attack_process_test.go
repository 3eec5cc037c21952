package executor

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/guard"
	"github.com/orlop-io/orlop/internal/platform/namespace"
	"github.com/orlop-io/orlop/test/programs"
)

// Attacks on what a program inherits: descriptors, credentials, keys, terminals.

var processAttacks = []attack{
	{"descriptor left open", [][]string{{"init.close-on-exec"}}, func(t *testing.T) string {
		// What whoever uses the executor has open, and forgot to close at execve, as well.
		fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		out, _ := attempt(t, []string{"descriptors"}, nil)
		return out
	}},
	{"session keyring of the caller", [][]string{{"credentials.keyring"}}, func(t *testing.T) (out string) {
		onThread(t, func() error {
			if _, err := unix.KeyctlJoinSessionKeyring("orlop-exec-test"); err != nil {
				return err
			}
			if _, err := unix.AddKey("user", "secret", []byte("the host's"), unix.KEY_SPEC_SESSION_KEYRING); err != nil {
				return err
			}
			out, _ = attempt(t, []string{"key", "secret"}, nil)
			return nil
		})
		return out
	}},
	{"inheritable capabilities of the caller (CVE-2022-29162)", [][]string{{"credentials.inheritable"}}, func(t *testing.T) (out string) {
		onThread(t, func() error {
			hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var data [2]unix.CapUserData
			if err := unix.Capget(&hdr, &data[0]); err != nil {
				return err
			}
			data[0].Inheritable = data[0].Permitted
			if err := unix.Capset(&hdr, &data[0]); err != nil {
				return err
			}
			out, _ = attempt(t, []string{"status", "CapInh", "0000000000000000"}, nil)
			return nil
		})
		return out
	}},
	{"bounding set of the caller", [][]string{{"credentials.bounding"}}, func(t *testing.T) string {
		out, _ := attempt(t, []string{"status", "CapBnd", fmt.Sprintf("%016x", mask(defaultCaps))}, nil)
		return out
	}},
	{"additional groups of the caller", [][]string{{"credentials.groups"}}, func(t *testing.T) (out string) {
		onThread(t, func() error {
			groups := []uint32{4242}
			if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&groups[0])), 0); e != 0 {
				return e
			}
			out, _ = attempt(t, []string{"status", "Groups"}, nil)
			return nil
		})
		return out
	}},
	{"setuid program of the image", [][]string{{"credentials.no-new-privs"}}, func(t *testing.T) string {
		out, _ := attempt(t, nil, func(s *specs.Spec, c *Config) {
			c.Rootfs = layers(t, setuid(t, hostile(t)))
			s.Process.Args = []string{"/bin/attacker", "run", "/suid", "euid"}
			s.Process.User = specs.User{UID: 1000, GID: 1000}
		})
		return strings.ReplaceAll(out, "euid 1000\n", "")
	}},
	{"setuid program of a volume", [][]string{{"credentials.nosuid"}}, func(t *testing.T) string {
		out, _ := attempt(t, nil, func(s *specs.Spec, c *Config) {
			s.Process.Args = []string{"/bin/attacker", "run", "/volume/suid", "euid"}
			s.Process.User = specs.User{UID: 1000, GID: 1000}
			s.Process.NoNewPrivileges = false
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/volume", Type: "bind", Source: setuid(t, outside(t)), Options: []string{"bind", "nosuid"}})
		})
		return strings.ReplaceAll(out, "euid 1000\n", "")
	}},
	{"user namespace, to mount control groups with a release_agent (CVE-2022-0492)", [][]string{{"credentials.seccomp"}}, func(t *testing.T) string {
		out, _ := attempt(t, []string{"namespace"}, func(s *specs.Spec, c *Config) { s.Linux.Seccomp = defaultSeccomp(t) })
		return out
	}},
	{"host's null device as a standard stream", [][]string{{"streams.own-null"}}, func(t *testing.T) string {
		var st unix.Stat_t
		if err := unix.Stat("/dev/null", &st); err != nil {
			t.Fatal(err)
		}
		root := layers(t, hostile(t))
		args := []string{"-c", "/bin/attacker stdin"}
		out, _ := attempt(t, nil, func(s *specs.Spec, c *Config) {
			c.Rootfs = root
			ownDev(s, t.TempDir())
			s.Linux.MaskedPaths = nil // they need a null device as well
			s.Process.Args = append([]string{"sh"}, args...)
		})
		if out == fmt.Sprintln(st.Dev, st.Ino) {
			return "a container without devices has the host's"
		}
		// And one that takes its own away before somebody joins it.
		p, end := start(t, Config{ID: "prison", Spec: spec("sleep", "1000"), Rootfs: layers(t, hostile(t))})
		defer end()
		execute(t, ExecConfig{PID: p.PID(), Process: &specs.Process{Args: []string{"/bin/busybox", "rm", "/dev/null"}, Cwd: "/", Capabilities: spec().Process.Capabilities}})
		out, _ = attemptExec(t, ExecConfig{PID: p.PID(), Process: &specs.Process{Args: []string{"/bin/attacker", "stdin"}, Cwd: "/"}})
		if out == fmt.Sprintln(st.Dev, st.Ino) {
			return "who joins a container has the host's"
		}
		if out == "" {
			t.Error("nobody could join")
		}
		return ""
	}},
	{"environment of the caller in a hook", [][]string{{"hooks.environment"}}, func(t *testing.T) string {
		t.Setenv("EXECUTOR_TEST_SECRET", "of the caller")
		said := t.TempDir() + "/said"
		hook := func(name string) specs.Hook {
			return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "env >>" + said}, Env: []string{"NAME=" + name}}
		}
		attempt(t, []string{"say"}, func(s *specs.Spec, c *Config) {
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{hook("createRuntime")}, CreateContainer: []specs.Hook{hook("createContainer")}}
		})
		out, _ := os.ReadFile(said)
		if !strings.Contains(string(out), "NAME=createContainer") || !unguarded() && !strings.Contains(string(out), "NAME=createRuntime") {
			t.Errorf("the hooks said %q", out)
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "SECRET") || strings.Contains(line, "GODEBUG") {
				return line
			}
		}
		return ""
	}},
	{"terminal of the caller (TIOCSTI)", [][]string{{"terminal.session"}}, func(t *testing.T) string {
		master, slave := pty(t)
		defer master.Close()
		defer slave.Close()
		return called(t, "TestCallerWithTerminal", "", slave, &syscall.SysProcAttr{Setsid: true, Setctty: true})
	}},
}

// called runs a test of this package that is a caller of the executor, in a process of its own, and returns
// what it has said a container reached.
func called(t *testing.T, test, arg string, stdin *os.File, attr *syscall.SysProcAttr) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", "^"+test+"$")
	cmd.Env = append(append(os.Environ(), guard.Environ()...), callerEnv+"="+test+" "+arg, programs.Env+"="+filepath.Dir(attacker))
	if shared.long {
		cmd.Env = append(cmd.Env, callerEnv+"_LONG=1")
	}
	cmd.Stdin, cmd.SysProcAttr = stdin, attr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, reached, ok := strings.Cut(string(out), "said:")
	reached, _, end := strings.Cut(reached, "\n.\n")
	if !ok || !end {
		t.Fatalf("%s ended without a word: %s", test, out)
	}
	return strings.TrimSpace(reached)
}

const callerEnv = "EXECUTOR_TEST_CALLER"

// caller runs fn where the process is one that called made for the test, and says what it returns.
func caller(t *testing.T, fn func(arg string) (reached string)) {
	t.Helper()
	test, arg, _ := strings.Cut(os.Getenv(callerEnv), " ")
	if test != t.Name() {
		return // not that process
	}
	if os.Getenv(callerEnv+"_LONG") != "" {
		defer byInit()()
	}
	fmt.Printf("said:%s\n.\n", fn(arg))
}

// TestCallerWithTerminal is a caller of the executor with a controlling terminal, which it
// gives to the container as standard input.
func TestCallerWithTerminal(t *testing.T) {
	caller(t, func(string) string {
		if f, err := os.Open("/dev/tty"); err != nil {
			t.Fatal("the caller has no terminal: ", err)
		} else {
			f.Close()
		}
		out, err := attempt(t, []string{"tty"}, func(s *specs.Spec, c *Config) { c.Stdin = os.Stdin })
		if err != nil {
			t.Fatal(err)
		}
		return out
	})
}

// onThread runs fn on a thread whose credentials it may change.
func onThread(t *testing.T, fn func() error) {
	t.Helper()
	if err := namespace.OnThread(fn); err != nil {
		t.Fatal(err)
	}
}

func mask(names []string) (m uint64) {
	for i, n := range capNames {
		for _, name := range names {
			if n == name {
				m |= 1 << i
			}
		}
	}
	return m
}

// setuid puts a setuid program into dir.
func setuid(t *testing.T, dir string) string {
	t.Helper()
	data, err := os.ReadFile(attacker)
	if err == nil {
		err = os.WriteFile(dir+"/suid", data, 0o755)
	}
	if err == nil {
		err = unix.Chmod(dir+"/suid", 0o4755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// pty opens a terminal of the host's.
func pty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}
