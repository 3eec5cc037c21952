package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/test/vm/boot"
)

// run runs a command, reaping as process 1 has to whatever is left to it.
func run(c *boot.Command, host *sender) boot.Status {
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	cmd.Env, cmd.Dir = append(c.Env, "TMPDIR="+boot.Dir+"/tmp"), c.Dir
	var copies sync.WaitGroup
	var pipes []*os.File
	defer func() {
		for _, p := range pipes {
			p.Close()
		}
	}()
	for _, s := range []struct {
		kind byte
		to   *io.Writer
	}{{boot.FrameStdout, &cmd.Stdout}, {boot.FrameStderr, &cmd.Stderr}} {
		r, w, err := os.Pipe()
		if err != nil {
			return boot.Status{Error: err.Error()}
		}
		*s.to = w
		pipes = append(pipes, r, w)
		copies.Go(func() {
			buf := make([]byte, 16<<10)
			for {
				n, err := r.Read(buf)
				if n == 0 || err != nil || host.frame(s.kind, buf[:n]) != nil {
					return
				}
			}
		})
	}
	if err := cmd.Start(); err != nil {
		return boot.Status{Error: fmt.Sprintf("start %s: %v", c.Argv[0], err)}
	}
	cmd.Stdout.(*os.File).Close()
	cmd.Stderr.(*os.File).Close()

	code := -1
	if os.Getpid() == 1 {
		code = reap(cmd.Process.Pid)
	} else {
		cmd.Wait() // its error is the exit code, for pipes that are files
		code = exitCode(unix.WaitStatus(cmd.ProcessState.Sys().(syscall.WaitStatus)))
	}
	// What runs on after the command may hold the pipes: its output is not waited for.
	done := make(chan struct{})
	go func() { copies.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(3 * time.Second):
		for _, p := range pipes {
			p.Close()
		}
		<-done
	}
	return boot.Status{Code: code}
}

func reap(pid int) int {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	defer signal.Stop(children)
	for {
		for {
			var ws unix.WaitStatus
			p, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
			if err == unix.EINTR {
				continue
			}
			if p <= 0 || err != nil {
				break
			}
			if p == pid {
				return exitCode(ws)
			}
		}
		<-children
	}
}

func exitCode(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// startSystemd becomes systemd, with a target that starts little more than a message
// bus and our unit.
func startSystemd(c *boot.Config) error {
	const dir = "/run/systemd/system"
	for _, bin := range []string{"/usr/lib/systemd/systemd", "/usr/bin/dbus-daemon"} {
		if _, err := os.Stat(bin); err != nil {
			return fmt.Errorf("%w; the host's tree needs the packages systemd and dbus", err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"orlop-vm.target": "[Unit]\nDescription=Orlop's test machine\nRequires=dbus.socket\nWants=orlop-vm.service\nAfter=dbus.socket\nAllowIsolate=yes\n",
		"orlop-vm.service": "[Unit]\nDescription=Commands under test\nDefaultDependencies=no\nRequires=dbus.service\nAfter=dbus.service\n" +
			"[Service]\nType=exec\nExecStart=" + boot.Dir + "/unit\nKillMode=process\nDelegate=yes\nTimeoutStartSec=infinity\n",
		// The bus needs none of what its packaged unit waits for.
		"dbus.socket":  "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
		"dbus.service": "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\n[Service]\nType=notify\nExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only\nOOMScoreAdjust=0\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := maskUnits(dir); err != nil {
		return err
	}
	return unix.Exec("/usr/lib/systemd/systemd", []string{"systemd", "--unit=orlop-vm.target", "--log-target=kmsg", "--show-status=no"},
		[]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
}

// maskUnits keeps systemd from starting what an ordinary boot starts: it takes twenty
// seconds here, and cleans the host's /tmp, where test binaries are. A unit that is
// started as any other, with its default dependencies, then waits for the journal alone.
func maskUnits(dir string) error {
	for _, pattern := range []string{"/usr/lib/systemd/system/*.target.wants/*", "/etc/systemd/system/*.target.wants/*"} {
		units, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, u := range units {
			name := filepath.Base(u)
			if strings.HasPrefix(name, "systemd-journald") || strings.HasPrefix(name, "dbus.") || strings.HasSuffix(name, ".target") {
				continue
			}
			if err := os.Symlink("/dev/null", filepath.Join(dir, name)); err != nil && !os.IsExist(err) {
				return err
			}
		}
	}
	return nil
}
