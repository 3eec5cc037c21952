package differential

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Runtime is a command with runc's flags.
type Runtime struct {
	Name string // in names of containers and directories
	Path string
}

// Outcome is what a runtime made of a case: findings by their names.
type Outcome map[string]string

// patience is how long a container may take: the machine may be busy.
const patience = time.Minute

// Run runs a case. What it finds is the same for every run of the same runtime: numbers
// of processes and names of directories are replaced by what they stand for.
func (r *Runtime) Run(t testing.TB, c Case) Outcome {
	short, _, _ := strings.Cut(c.Name, "+") // a socket's path is not longer than 107 bytes
	id := r.Name + "-" + short
	dir, cgroup := filepath.Join(suite.work, id), suite.cgroup
	b := newBundle(t, dir, id)
	defer os.RemoveAll(dir)
	defer b.close()
	c.Make(t, b)
	b.write(t)

	out := Outcome{}
	clean := strings.NewReplacer(dir, "$BUNDLE", id, "$ID", cgroup, "$CGROUPS")
	r.run(t, b, out, clean)
	for _, hook := range glob(dir + "/hooks.*") {
		content, _ := os.ReadFile(hook)
		out[filepath.Base(hook)] = clean.Replace(hookState(string(content)))
	}
	leftovers(dir, id, cgroup, out)
	rootfs(dir, out)
	r.sweep(b)
	return out
}

// sweep takes away what a case has to leave: a container that was to be kept, and groups
// above the container's. What else there is keeps a group from being removed at the end.
func (r *Runtime) sweep(b *Bundle) {
	if left, _ := os.ReadDir(b.Path("state")); len(left) > 0 {
		exec.Command(r.Path, "--root", b.Path("state"), "delete", "--force", b.ID).Run()
	}
	for _, root := range parents() {
		var dirs []string
		filepath.WalkDir(filepath.Join(root, suite.cgroup, b.ID), func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, d := range slices.Backward(dirs) {
			os.Remove(d)
		}
	}
}

// hookState puts the state, which a hook notes first, into an order that is its own.
func hookState(note string) string {
	state, rest, _ := strings.Cut(note, "\n")
	var s map[string]any
	if json.Unmarshal([]byte(state), &s) != nil {
		return note
	}
	if pid, ok := s["pid"].(float64); ok && pid > 0 {
		s["pid"] = "$PID"
	}
	b, err := json.Marshal(s)
	if err != nil {
		return note
	}
	return string(b) + "\n" + rest
}

// run runs the container and looks at it while the program inside waits.
func (r *Runtime) run(t testing.TB, b *Bundle, out Outcome, clean *strings.Replacer) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	args := append([]string{"--root", b.Path("state"), "run", "--bundle", b.Dir, "--pid-file", b.Path("pid")}, b.Flags...)
	cmd := exec.CommandContext(ctx, r.Path, append(args, b.ID)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "XDG_RUNTIME_DIR=/run"}
	cmd.Dir = b.Dir
	cmd.WaitDelay = 5 * time.Second
	cmd.ExtraFiles = b.Extra
	var stderr bytes.Buffer
	var stdin io.WriteCloser
	var stdout io.ReadCloser
	terminal := b.Spec.Process != nil && b.Spec.Process.Terminal
	if terminal {
		master, slave := openTerminal(t)
		defer master.Close()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		defer slave.Close()
		stdin, stdout = master, master
	} else {
		cmd.Stderr = &stderr
		var w *os.File
		var err error
		if stdout, w, err = os.Pipe(); err != nil {
			t.Fatal(err)
		}
		defer stdout.Close()
		defer w.Close()
		cmd.Stdout = w
		if !b.NoStdin {
			if stdin, err = cmd.StdinPipe(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Our ends are closed, so that reading ends with the container.
	for _, f := range []any{cmd.Stdin, cmd.Stdout} {
		if f, ok := f.(*os.File); ok {
			f.Close()
		}
	}
	defer context.AfterFunc(ctx, func() { killGroup(b) })()
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()

	told, complete := readReport(stdout)
	maps.Copy(out, told)
	out["ran"] = strconv.FormatBool(complete)
	if complete {
		pid, err := awaitPID(ctx, b.Path("pid"))
		switch {
		case b.NoStdin: // it does not wait to be looked at
		case err != nil:
			out["pid file"] = err.Error()
		default:
			ownIDs(out, pid, cmd.Process.Pid)
			r.update(ctx, b, out)
			lookAt(pid, b, out)
		}
	}
	if stdin != nil {
		if terminal {
			stdin.Write([]byte(".\n"))
		} else {
			stdin.Close()
		}
	}
	rest := make(chan []byte, 1)
	go func() {
		all, _ := io.ReadAll(stdout)
		rest <- all
	}()
	err := <-waited
	if terminal {
		stdin.Close()
	}
	if !complete {
		out["stdout"] = told["stdout"]
	}
	text := stderr.String()
	if terminal && !complete {
		text = told["stdout"] + string(<-rest)
		delete(out, "stdout")
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		out["exit"] = "0"
	case ctx.Err() != nil:
		out["exit"] = "never"
	case errors.As(err, &exit):
		out["exit"] = exit.String()
	default:
		out["exit"] = err.Error()
	}
	out["error"] = "none"
	if !complete || out["exit"] != "0" {
		out["error"] = classify(text)
	}
	for k, v := range out {
		if n := clean.Replace(v); n != v {
			out[k] = n
		}
		if n := clean.Replace(k); n != k {
			delete(out, k)
			out[n] = clean.Replace(v)
		}
	}
	out["stderr"] = clean.Replace(strings.TrimSpace(text)) // for the reader, not compared
}

// update changes the container's limits, and notes which changes were taken.
func (r *Runtime) update(ctx context.Context, b *Bundle, out Outcome) {
	for i, u := range b.Updates {
		cmd := exec.CommandContext(ctx, r.Path, slices.Concat([]string{"--root", b.Path("state"), "update"}, u.Args, []string{b.ID})...)
		cmd.Env, cmd.Dir, cmd.Stdin = []string{"PATH=" + os.Getenv("PATH")}, b.Dir, strings.NewReader(u.Stdin)
		text, err := cmd.CombinedOutput()
		key := fmt.Sprintf("update %d", i)
		if out[key] = "taken"; err != nil {
			out[key] = "refused"
			out["said at "+key] = string(text)
		}
	}
}

// killGroup ends what a container still has when the patience with it is at an end.
func killGroup(b *Bundle) {
	for _, root := range parents() {
		filepath.WalkDir(filepath.Join(root, suite.cgroup, b.ID), func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Name() == "cgroup.procs" {
				procs, _ := os.ReadFile(path)
				for p := range strings.FieldsSeq(string(procs)) {
					if pid, err := strconv.Atoi(p); err == nil {
						unix.Kill(pid, unix.SIGKILL)
					}
				}
			}
			return nil
		})
	}
}

// readReport reads what the program inside says, up to its end.
func readReport(r io.Reader) (out Outcome, complete bool) {
	out = Outcome{}
	in := bufio.NewReader(r)
	var other strings.Builder
	for {
		line, err := in.ReadString('\n')
		key, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), "\t")
		switch {
		case ok && key == "done":
			return out, true
		case ok:
			k, err1 := strconv.Unquote(key)
			v, err2 := strconv.Unquote(value)
			if err1 != nil || err2 != nil {
				other.WriteString(line)
				break
			}
			out[k] = v
		default:
			other.WriteString(line)
		}
		if err != nil {
			out["stdout"] = other.String()
			return out, false
		}
	}
}

// ownIDs replaces the numbers of processes in what the program inside said of itself.
func ownIDs(out Outcome, pid, runtime int) {
	words := strings.Fields(out["ids"])
	self := ""
	if len(words) > 1 && words[1] != "1" {
		self = words[1] // in a namespace that others are in, too
	}
	for i, w := range words {
		switch w {
		case strconv.Itoa(pid), self:
			words[i] = "$PID"
		case strconv.Itoa(runtime):
			words[i] = "$RUNTIME"
		}
	}
	out["ids"] = strings.Join(words, " ")
	for fd := range 3 {
		k := "descriptor " + strconv.Itoa(fd)
		out[k] = strings.ReplaceAll(out[k], " foreground "+strconv.Itoa(pid)+" ", " foreground $PID ")
		// The size of the caller's terminal comes sooner or later.
		out[k] = strings.ReplaceAll(strings.ReplaceAll(out[k], " terminal 24x80 ", " terminal "), " terminal 0x0 ", " terminal ")
	}
}

// openTerminal makes a pseudoterminal of 24 by 80 for the runtime to run in.
func openTerminal(t testing.TB) (master, slave *os.File) {
	t.Helper()
	m, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	master = os.NewFile(uintptr(m), "ptmx")
	if err := unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(m, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(m, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// classes are the kinds of errors that a caller of a runtime has to tell apart; the first
// that fits counts. Beyond them runtimes have words of their own.
var classes = []struct {
	name string
	re   *regexp.Regexp
}{
	{"none", regexp.MustCompile(`^\s*$`)},
	{"program not found", regexp.MustCompile(`(?i)executable file not found|exec: "[^"]*": (stat [^ ]*: )?no such file|find executable [^:]*: no such file|program [^:]*: (it )?(is )?not (found|there)|no such file or directory.*program`)},
	{"program not executable", regexp.MustCompile(`(?i)exec[^:]*:.*(permission denied|format error|is a directory)|program.*(permission denied|format error|not executable|is a directory)`)},
}

// classify says of which kind an error is.
func classify(text string) string {
	text = strings.ReplaceAll(text, `\"`, `"`) // as it is in a log
	for _, c := range classes {
		if c.re.MatchString(text) {
			return c.name
		}
	}
	return "refused"
}

// awaitPID reads the file with the number of the container's process, which runc writes
// only when the program runs already.
func awaitPID(ctx context.Context, path string) (int, error) {
	for tick := time.NewTicker(time.Millisecond); ; {
		b, err := os.ReadFile(path)
		if err == nil && len(b) > 0 {
			return strconv.Atoi(strings.TrimSpace(string(b)))
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("no pid file: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

func glob(pattern string) []string {
	names, _ := filepath.Glob(pattern)
	slices.Sort(names)
	return names
}
