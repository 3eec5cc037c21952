package executor

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Attacks on who joins a container that runs: its programs are there already, and awake.

var joinAttacks = []attack{
	{"runtime's binary overwritten (CVE-2019-5736)", [][]string{{"init.sealed"}}, func(t *testing.T) string { return overwritten(t, false) }},
	{"runtime's binary overwritten, of a command that starts one process", [][]string{{"init.sealed"}}, func(t *testing.T) string { return overwritten(t, true) }},
	{"descriptors and memory of init at the gate (CVE-2016-9962)", [][]string{{"init.undumpable"}}, func(t *testing.T) string {
		for _, user := range []specs.User{{}, {UID: 1000, GID: 1000}} {
			p := imprison(t, func(s *specs.Spec, c *Config) { s.Process.User = user }, "look")
			process := joiner("/bin/attacker", "say")
			process.User = user
			q, err := shared.Exec(contextT(t), ExecConfig{PID: p.p.PID(), Process: process})
			reached := p.said() // it looks once more before it ends
			if err == nil {
				q.Close()
				unix.Wait4(q.PID(), nil, 0, nil)
			}
			wait(t, p.p)
			if reached != "" {
				return reached
			}
			if err != nil { // not because the attacker was there before the gate, and ended
				t.Fatal(err)
			}
		}
		return ""
	}},
	{"descriptors and memory of init on its way to the gate", nil, func(t *testing.T) string {
		p := imprison(t, nil, "look")
		races(func() string {
			// What fails at the gate never executes a program, which could be looked into.
			_, err := shared.Exec(contextT(t), ExecConfig{PID: p.p.PID(), Process: joiner("/bin/nothing")})
			if err == nil || !strings.Contains(err.Error(), "/bin/nothing") {
				return fmt.Sprint(err) // the attacker has ended, so it reached something
			}
			return ""
		})
		return p.end(t)
	}},
	{"descriptors and memory of init, by a container with every capability in its user namespace", [][]string{{"init.undumpable", "init.unreadable"}}, func(t *testing.T) string {
		e, err := New(Options{InitPath: initPath}) // with the mode that the guards give it
		if err != nil {
			t.Fatal(err)
		}
		e.long = shared.long
		defer e.Close()
		defer func(old *Executor) { shared = old }(shared)
		shared = e
		all := &specs.LinuxCapabilities{Bounding: capNames, Effective: capNames, Permitted: capNames}
		p := imprison(t, func(s *specs.Spec, c *Config) {
			s.Process.Capabilities = all
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
		}, "look")
		races(func() string {
			process := joiner("/bin/nothing")
			process.Capabilities = all
			_, err := shared.Exec(contextT(t), ExecConfig{PID: p.p.PID(), Process: process})
			if err == nil || !strings.Contains(err.Error(), "/bin/nothing") {
				return fmt.Sprint(err) // the attacker has ended, so it reached something
			}
			return ""
		})
		return p.end(t)
	}},
	{"working directory of who joins, through a descriptor", [][]string{{"paths.in-root", "paths.cwd-checked"}}, func(t *testing.T) string {
		dir := outside(t)
		p, end := start(t, Config{ID: "prison", Spec: spec("sleep", "1000"), Rootfs: layers(t, hostile(t))})
		defer end()
		for fd := 3; fd < 10; fd++ {
			process := joiner("/bin/attacker", "file", "secret")
			process.Cwd = fmt.Sprintf("/proc/self/fd/%d/%d/root%s", fd, os.Getpid(), dir)
			if out, _ := attemptExec(t, ExecConfig{PID: p.PID(), Process: process}); out != "" {
				return out
			}
		}
		return ""
	}},
	{"program of who joins, through a descriptor", [][]string{{"init.lets-go"}}, func(t *testing.T) string {
		dir := outside(t)
		victim := exec.Command("/bin/sleep", "60")
		victim.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { victim.Process.Kill(); victim.Wait() }()
		for fd := 3; fd < 10; fd++ {
			root := layers(t, hostile(t))
			os.Remove(root.Lower[0] + "/bin/sh")
			os.Symlink(fmt.Sprintf("/proc/self/fd/%d/%d/root%s/attacker", fd, victim.Process.Pid, dir), root.Lower[0]+"/bin/sh")
			p, end := start(t, Config{ID: "prison", Spec: spec("sleep", "1000"), Rootfs: root})
			process := joiner("sh", "say", "ran a binary of the host")
			process.User = specs.User{UID: 1000, GID: 1000}
			out, _ := attemptExec(t, ExecConfig{PID: p.PID(), Process: process})
			end()
			if out != "" {
				return out
			}
		}
		return ""
	}},
	{"host's files below the root of who joins", [][]string{{"mounts.old-root-detached"}}, func(t *testing.T) string {
		dir := outside(t)
		// One that waits: process 1 of the container must not end, and its processes with it,
		// before the joiner has spoken.
		p := imprison(t, nil, "wait")
		defer p.end(t)
		out, _ := attemptExec(t, ExecConfig{PID: p.p.PID(), Process: joiner(dir+"/attacker", "say", "who joins stands in the host's root")})
		return out
	}},
	{"host's files below the root of who joins, of a caller in a chroot", [][]string{{"mounts.namespace-root"}}, func(t *testing.T) string {
		// The caller binds the host's root there, in a mount namespace of its own: the directory is beside what
		// tests remove with all below.
		root, err := os.MkdirTemp(filepath.Dir(temporary), "exec-chroot-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.Remove(root)
		return called(t, "TestCallerInChroot", root+" "+outside(t), nil, &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS})
	}},
	{"attribute of who joins written into a file of the image (CVE-2019-16884)", [][]string{{"proc.host"}}, func(t *testing.T) string {
		root := hostile(t)
		fake(t, root+"/proc/self/oom_score_adj")
		p, end := start(t, Config{ID: "prison", Rootfs: Rootfs{Dir: root}, Spec: func() *specs.Spec {
			s := spec("sleep", "1000")
			s.Mounts = s.Mounts[1:] // the image's own /proc
			return s
		}()})
		defer end()
		process := joiner("/bin/attacker", "say")
		process.OOMScoreAdj = ptr(700)
		attemptExec(t, ExecConfig{PID: p.PID(), Process: process})
		return written(root + "/proc/self/oom_score_adj")
	}},
}

// joiner is a process that joins a container, with what the container has.
func joiner(args ...string) *specs.Process {
	p := spec(args...).Process
	p.Env = []string{"PATH=/bin"}
	return p
}

// TestSignalsAtTheGate: a container that kills or stops whoever joins it keeps it out, and
// nothing more: each try ends in its time, with an error, and leaves nothing.
func TestSignalsAtTheGate(t *testing.T) { eachWay(t, testSignalsAtTheGate) }

func testSignalsAtTheGate(t *testing.T) {
	for _, sig := range []string{"SIGKILL", "SIGTERM", "SIGQUIT", "SIGSEGV", "SIGHUP", "SIGURG", "SIGUSR1"} {
		t.Run(sig, func(t *testing.T) {
			p := imprison(t, nil, "signal", sig)
			before := leftovers()
			ended := 0
			for range 20 {
				out, err := attemptExec(t, ExecConfig{PID: p.p.PID(), Process: joiner("/bin/echo", "alive")})
				if strings.Contains(out, "does not end") {
					t.Fatal(out)
				}
				if strings.Contains(out, "goroutine") || err != nil && strings.Contains(err.Error(), "goroutine") {
					t.Errorf("the runtime's stack is shown: %q, %v", out, err)
				}
				if err != nil || !strings.Contains(out, "alive") {
					ended++
				}
			}
			t.Logf("%d of 20 were ended", ended)
			if after := leftovers(); after != before {
				t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
			}
			if out := p.end(t); out != "" {
				t.Error(out)
			}
		})
	}
}

// overwritten joins a container that tries to write to what joins it.
func overwritten(t *testing.T, once bool) string {
	path := t.TempDir() + "/orlop-init"
	before, err := os.ReadFile(initPath)
	if err == nil {
		err = os.WriteFile(path, before, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(Options{InitPath: path, Once: once})
	if err != nil {
		t.Fatal(err)
	}
	e.long = shared.long
	defer e.Close()
	defer func(old *Executor) { shared = old }(shared)
	shared = e
	// The shell that is asked for is a script of the image's, which has the runtime
	// execute itself; a program of the container gets hold of it in that moment.
	p := imprison(t, func(s *specs.Spec, c *Config) {
		os.Remove(c.Rootfs.Lower[0] + "/bin/sh")
		os.WriteFile(c.Rootfs.Lower[0]+"/bin/sh", []byte("#!/proc/self/exe\n"), 0o755)
	}, "overwrite")
	reached := races(func() string {
		attemptExec(t, ExecConfig{PID: p.p.PID(), Process: joiner("/bin/sh")})
		after, _ := os.ReadFile(path)
		sealed := make([]byte, len(before))
		memfdOf(t, e).ReadAt(sealed, 0)
		if !bytes.Equal(before, after) || !bytes.Equal(before, sealed) {
			return "the runtime's binary is " + string(after[:5])
		}
		return ""
	})
	p.end(t)
	return reached
}

// TestCallerInChroot is a caller whose root is not its mount namespace's: all is there as on the host, read-only
// but for /proc and the tests' directory, and one directory is empty. Who finds the host's files in that has got out.
func TestCallerInChroot(t *testing.T) {
	caller(t, func(arg string) string {
		root, dir, _ := strings.Cut(arg, " ")
		tests := filepath.Dir(dir)
		err := unix.Mount("/", root, "", unix.MS_BIND|unix.MS_REC, "")
		for _, step := range []func() error{
			func() error {
				return unix.MountSetattr(-1, root, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
			},
			func() error { return unix.Mount("proc", root+"/proc", "proc", 0, "") },
			func() error { return unix.Mount(tests, root+tests, "", unix.MS_BIND, "") },
			func() error { return unix.Mount("tmpfs", root+dir, "tmpfs", 0, "") },
			func() error { return unix.Chroot(root) },
			func() error { return os.Chdir("/") },
		} {
			if err == nil {
				err = step()
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
			t.Fatalf("the chroot has the host's files: %v, %v", list, err)
		}
		p := imprison(t, nil, "wait")
		defer p.end(t)
		out, _ := attemptExec(t, ExecConfig{PID: p.p.PID(), Process: joiner(dir+"/attacker", "say", "who joins stands in the host's root")})
		return out
	})
}
