package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/namespace"
	"golang.org/x/sys/unix"
)

const toolPods = `
apiVersion: v1
kind: Pod
metadata: {name: tool}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: data, emptyDir: {}}]
  containers:
    - {name: count, image: "localhost/tool:1", args: [count], volumeMounts: [{name: data, mountPath: /data}]}
    - {name: listen, image: "localhost/tool:1", args: [listen, "7000"]}
    - {name: shell, image: "localhost/tool:1", args: [terminal], stdin: true, tty: true}
---
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  containers: [{name: main, image: "localhost/tool:1", args: [exit, "3"]}]
`

// toolNode is a node on which the tool runs.
func toolNode(t *testing.T) *node {
	t.Helper()
	n := newNode(t)
	n.packTool()
	if _, err := n.feed(toolPods, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	n.eventually(30*time.Second, func() error {
		out, err := n.try("ps")
		if err == nil && !strings.Contains(out, "3/3") {
			err = errors.New(out)
		}
		return err
	})
	return n
}

// packTool makes the image localhost/tool:1.
func (n *node) packTool() {
	n.t.Helper()
	n.orlop("image", "pack", bin+"/tool", "-t", "localhost/tool:1")
}

// code returns the exit code of the CLI, and its streams.
func (n *node) code(stdin io.Reader, args ...string) (code int, stdout, stderr string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := n.command(ctx, bin+"/orlop", args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errOut
	err := cmd.Run()
	exit := new(exec.ExitError)
	if err != nil && !errors.As(err, &exit) {
		n.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

// Commands as a user types them, against containers that run.
func TestCommands(t *testing.T) {
	n := toolNode(t)
	t.Run("exec", func(t *testing.T) {
		code, out, errOut := n.code(nil, "exec", "tool", "-c", "count", "--", "/bin/tool", "exit", "7")
		if code != 7 || out != "to stdout\n" || errOut != "to stderr\n" {
			t.Errorf("%d, %q, %q", code, out, errOut)
		}
		// What goes in comes out, and the end of the input with it.
		big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
		if code, out, errOut = n.code(bytes.NewReader(big), "exec", "-i", "tool", "-c", "count", "--", "/bin/tool", "cat"); code != 0 || out != string(big) {
			t.Errorf("%d, %d bytes of %d, %s", code, len(out), len(big), errOut)
		}
		if code, _, errOut = n.code(nil, "exec", "tool", "-c", "count", "--", "/nothing"); code == 0 || !strings.Contains(errOut, "/nothing") {
			t.Errorf("%d, %s", code, errOut)
		}
		if code, _, _ = n.code(nil, "exec", "nobody", "--", "x"); code != 3 {
			t.Errorf("%d", code)
		}
		// One that leaves a child behind, which has its streams, has ended all the same.
		begin := time.Now()
		if code, out, _ = n.code(nil, "exec", "tool", "-c", "count", "--", "/bin/tool", "leave"); code != 0 || !strings.HasPrefix(out, "left") || time.Since(begin) > 20*time.Second {
			t.Errorf("%d, %q after %s", code, out, time.Since(begin))
		}
	})
	t.Run("exec to a slow reader", func(t *testing.T) {
		cmd := n.command(context.Background(), bin+"/orlop", "exec", "tool", "-c", "count", "--", "/bin/tool", "write", "3000000")
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // slower than the server waits for more: the command ended long ago
		got, err := io.ReadAll(out)
		if err = errors.Join(err, cmd.Wait()); err != nil || len(got) != 3000000 {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
	t.Run("exec whose client goes away", func(t *testing.T) {
		sleepers := func() int {
			return len(processes(func(args []string) bool { return len(args) == 3 && args[1] == "sleep" && args[2] == n.name }))
		}
		cmd := n.command(context.Background(), bin+"/orlop", "exec", "tool", "-c", "count", "--", "/bin/tool", "sleep", n.name)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n.eventually(10*time.Second, func() error {
			if sleepers() != 1 {
				return errors.New("the command does not run")
			}
			return nil
		})
		cmd.Process.Kill()
		cmd.Wait()
		n.eventually(10*time.Second, func() error {
			if sleepers() != 0 {
				return errors.New("the command goes on")
			}
			return nil
		})
	})
	t.Run("terminal", func(t *testing.T) {
		p := n.terminal("exec", "-it", "tool", "-c", "count", "--", "/bin/tool", "terminal")
		p.expect("ready, TERM xterm")
		p.typed("size\r")
		p.expect("has 80 columns 24 rows")
		p.resize(123, 45)
		p.expect("now 123 columns 45 rows")
		p.typed("\x03")
		p.expect("interrupted")
		p.typed("exit 42\r")
		p.ended(42)
		// An end of the input is one for the command.
		p = n.terminal("exec", "-it", "tool", "-c", "count", "--", "/bin/tool", "terminal")
		p.expect("ready")
		p.typed("\x04")
		p.expect("end of input")
		p.ended(0)
	})
	t.Run("attach", func(t *testing.T) {
		p := n.terminal("attach", "-it", "tool", "-c", "shell")
		p.typed("hello\r")
		p.expect("typed hello")
		p.resize(99, 11)
		p.expect("now 99 columns 11 rows")
		p.typed("\x10\x11")
		p.ended(0)
		if out := n.orlop("logs", "tool", "-c", "shell"); !strings.Contains(out, "typed hello") {
			t.Errorf("the log does not have it: %s", out)
		}
	})
	t.Run("logs", func(t *testing.T) {
		// The two streams are two pipes: which is read first is not said.
		if out := n.orlop("logs", "once"); out != "to stdout\nto stderr\n" && out != "to stderr\nto stdout\n" {
			t.Errorf("%q", out)
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		cmd := n.command(ctx, bin+"/orlop", "logs", "tool", "-c", "count", "-f", "--tail", "0")
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		last := -1
		var text string
		for strings.Count(text, "\n") < 10 {
			k, err := out.Read(buf)
			if err != nil {
				t.Fatalf("%v after %q", err, text)
			}
			text += string(buf[:k])
		}
		cancel()
		cmd.Wait()
		for line := range strings.Lines(text) {
			if i, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "count "))); err != nil || last >= 0 && i != last+1 {
				if strings.HasSuffix(line, "\n") {
					t.Errorf("line %q after %d", line, last)
				}
			} else {
				last = i
			}
		}
	})
	t.Run("cp", func(t *testing.T) {
		dir := t.TempDir()
		if err := errors.Join(os.MkdirAll(dir+"/tree/below", 0o755), os.WriteFile(dir+"/tree/below/file", []byte("content"), 0o640), os.Symlink("below/file", dir+"/tree/link")); err != nil {
			t.Fatal(err)
		}
		n.orlop("cp", dir+"/tree", "tool:/data", "-c", "count")
		n.orlop("cp", "tool:/data/tree", dir+"/back", "-c", "count")
		got, err := os.ReadFile(dir + "/back/link")
		info, serr := os.Stat(dir + "/back/below/file")
		if err = errors.Join(err, serr); err != nil || string(got) != "content" || info.Mode().Perm() != 0o640 {
			t.Errorf("%q, %v, %v", got, info, err)
		}
		if code, _, _ := n.code(nil, "cp", "tool:/nothing", dir, "-c", "count"); code != 3 {
			t.Errorf("%d", code)
		}
	})
	t.Run("port-forward", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		cmd := n.command(ctx, bin+"/orlop", "port-forward", "tool", "17000:7000")
		var talk bytes.Buffer
		cmd.Stderr = &talk
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer cancel()
		var conn net.Conn
		n.eventually(10*time.Second, func() error {
			return namespace.Do(n.netns, func() (err error) { conn, err = net.Dial("tcp", "127.0.0.1:17000"); return err })
		})
		defer conn.Close()
		fmt.Fprintln(conn, "hello")
		conn.(*net.TCPConn).CloseWrite()
		if got, err := io.ReadAll(conn); err != nil || string(got) != "echo hello\nbye\n" {
			t.Errorf("%q, %v, %s", got, err, talk.String())
		}
	})
	t.Run("views", func(t *testing.T) {
		var pods []struct{ Name, Status, Phase string }
		n.json(&pods, "ps")
		if len(pods) != 2 || pods[0].Name != "once" || pods[0].Phase != "Failed" || pods[1].Status != "Running" {
			t.Errorf("%+v", pods)
		}
		var pod struct{ Object map[string]any }
		n.json(&pod, "inspect", "pod", "tool")
		if pod.Object["kind"] != "Pod" {
			t.Errorf("%+v", pod)
		}
		if out := n.orlop("events"); !strings.Contains(out, "Started") {
			t.Errorf("%s", out)
		}
		if out := n.orlop("stats"); !strings.Contains(out, "tool") {
			t.Errorf("%s", out)
		}
		layout, err := cgroup.Open(cgroup.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if out := n.orlop("system", "info"); !strings.Contains(out, layout.Layout().String()+"\n") {
			t.Errorf("no word of %q: %s", layout.Layout(), out)
		}
		metrics, err := n.http("GET", "http://127.0.0.1:9464/metrics", "")
		for _, name := range []string{`orlop_pods{phase="Running"} 1`, `orlop_volume_pool_bytes{what="promisable"}`, `orlop_volume_disk_bytes{what="reserve"} 0`, `orlop_volumes{what="scratch"} 0`} {
			if err != nil || !strings.Contains(metrics, name) {
				t.Errorf("%s is not among the metrics: %v", name, err)
			}
		}
		for _, args := range []string{"system info", "system df", "image ls", "volume ls", "version", "image inspect localhost/tool:1", "ps -o wide", "ps -o yaml", "stats -o json", "events -o json"} {
			n.orlop(strings.Fields(args)...)
		}
	})
	t.Run("errors", func(t *testing.T) {
		bad := "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec:\n  contaners: []\n  resourceClaims: [{name: x}]\n"
		code, _, errOut := n.code(strings.NewReader(bad), "apply", "-f", "-")
		if code != 1 || !strings.Contains(errOut, ":5: spec.contaners") || !strings.Contains(errOut, "did you mean containers?") || !strings.Contains(errOut, ":6: spec.resourceClaims") {
			t.Errorf("%d, %s", code, errOut)
		}
		if code, _, _ = n.code(nil, "image", "rm", "localhost/tool:1"); code != 4 {
			t.Errorf("an image in use: %d", code)
		}
		if code, _, _ = n.code(nil, "image", "rm", "localhost/none:1"); code != 3 {
			t.Errorf("an image that is not there: %d", code)
		}
		missing := "apiVersion: v1\nkind: Pod\nmetadata: {name: never}\nspec: {containers: [{name: a, image: \"localhost/none:1\", imagePullPolicy: Never}]}\n"
		code, _, errOut = n.code(strings.NewReader(missing), "apply", "-f", "-", "--wait", "--timeout", "2s")
		if code != 124 || !strings.Contains(errOut, "localhost/none:1") {
			t.Errorf("waiting for a pod that cannot start: %d, %s", code, errOut)
		}
		n.orlop("delete", "pod", "never")
		n.kill()
		if code, _, errOut = n.code(nil, "ps"); code != 5 || !strings.Contains(errOut, "start it") {
			t.Errorf("without a daemon: %d, %s", code, errOut)
		}
		n.start()
	})
}

// pty is a command on a terminal of its own.
type pty struct {
	t      *testing.T
	cmd    *exec.Cmd
	master *os.File
	mu     sync.Mutex
	seen   []byte // what came and was not expected yet
	all    []byte
	done   chan struct{}
}

// terminal runs the CLI on a new terminal (pty(7)).
func (n *node) terminal(args ...string) *pty {
	n.t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { master.Close() })
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	defer slave.Close()
	p := &pty{t: n.t, master: master, done: make(chan struct{})}
	p.resize(80, 24)
	before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		n.t.Fatal(err)
	}
	p.cmd = n.command(context.Background(), bin+"/orlop", args...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = slave, slave, slave
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := p.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	// Our descriptor of the slave stays open until the command's end, to look at what
	// it left.
	keep, err := unix.Dup(int(slave.Fd()))
	if err != nil {
		n.t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			k, err := master.Read(buf)
			p.mu.Lock()
			p.seen, p.all = append(p.seen, buf[:k]...), append(p.all, buf[:k]...)
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	go func() {
		p.cmd.Wait()
		if after, err := unix.IoctlGetTermios(keep, unix.TCGETS); err != nil || *after != *before {
			n.t.Errorf("the terminal was not put right: %v", err)
		}
		unix.Close(keep)
		close(p.done)
	}()
	return p
}

func (p *pty) resize(columns, rows uint16) {
	p.t.Helper()
	if err := unix.IoctlSetWinsize(int(p.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pty) typed(s string) {
	p.t.Helper()
	if _, err := p.master.WriteString(s); err != nil {
		p.t.Fatal(err)
	}
}

// expect waits for the text and forgets what came up to it.
func (p *pty) expect(text string) {
	p.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		p.mu.Lock()
		i := bytes.Index(p.seen, []byte(text))
		if i >= 0 {
			p.seen = p.seen[i+len(text):]
		}
		all := string(p.all)
		p.mu.Unlock()
		if i >= 0 {
			return
		}
		if time.Now().After(deadline) {
			p.cmd.Process.Kill()
			p.t.Fatalf("%q does not come; there is %q", text, all)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (p *pty) ended(code int) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(15 * time.Second):
		p.cmd.Process.Kill()
		p.t.Fatalf("it does not end; there is %q", p.all)
	}
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Errorf("exit code %d instead of %d; there is %q", got, code, p.all)
	}
}
