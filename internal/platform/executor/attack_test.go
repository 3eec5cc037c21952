package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/guard"
	"github.com/orlop-io/orlop/test/programs"
)

// attack is one way out of a container, or to what is not its own: each published escape
// has one, and each guard. docs/design/executor-security.md tells what they are about.
type attack struct {
	name string
	// without are the sets of guards without which the attack succeeds. Where several
	// stand behind each other it takes all of a set.
	without [][]string
	// run tries it and says what it reached, "" if nothing. A start that is refused has
	// reached nothing.
	run func(t *testing.T) (reached string)
}

// Each is tried on both ways of starting: by a program, where the start has that form, and by
// orlop-init.
func attacks() []attack {
	each := slices.Concat(pathAttacks, mountAttacks, processAttacks, joinAttacks)
	all := slices.Clone(each)
	for _, a := range each {
		all = append(all, attack{name: a.name + ", of orlop-init", without: a.without, run: func(t *testing.T) string {
			defer byInit()()
			return a.run(t)
		}})
	}
	return all
}

// TestAttacks: none succeeds. With the tag guards, each does once its protection is taken
// out, so that it is known to be an attack, and the protection to be what stops it.
func TestAttacks(t *testing.T) {
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) {
			if reached := a.run(t); reached != "" {
				t.Fatalf("it succeeds: %s", reached)
			}
			if !guard.Enabled {
				return
			}
			for _, without := range a.without {
				t.Run("without "+strings.Join(without, " and "), func(t *testing.T) {
					defer guard.Without(without...)()
					if reached := a.run(t); reached == "" {
						t.Error("it does not succeed: it is no attack, or something else stops it")
					} else {
						t.Logf("%s", reached)
					}
				})
			}
		})
	}
}

// TestEveryGuardIsAttacked: there is no guard whose worth is not shown.
func TestEveryGuardIsAttacked(t *testing.T) {
	attacked := map[string]bool{"guard.test": true}
	for _, a := range attacks() {
		for _, set := range a.without {
			for _, g := range set {
				attacked[g] = true
			}
		}
	}
	for _, g := range guard.List() {
		if !attacked[g] {
			t.Errorf("no attack needs the guard %s to be off", g)
		}
	}
}

// TestWithoutGuards runs the attacks with the tag. It is here so that whoever changes a
// protection and runs this package's tests learns what the change did to it.
func TestWithoutGuards(t *testing.T) {
	if guard.Enabled {
		return // this is that run
	}
	if os.Getenv(programs.Env) != "" {
		t.Skip("the programs were built elsewhere, and there is no compiler here: it runs where they are built")
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-tags", "guards", "-timeout", "5m", "-run", "^(TestAttacks|TestEveryGuardIsAttacked)$", ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// unguarded tells whether a guard is off.
func unguarded() bool { return len(guard.Environ()) > 0 }

// races is how often an attack that needs luck is tried: with everything on, for a second
// or two; with a guard off, until it succeeds or hope is lost.
func races(fn func() (reached string)) string {
	n := 40
	if unguarded() {
		n = 1000
	}
	for end := time.Now().Add(time.Minute); n > 0 && time.Now().Before(end); n-- {
		if reached := fn(); reached != "" {
			return reached
		}
	}
	return ""
}

// flip exchanges a path with others over and over until the returned function is called,
// as somebody who shares a volume or a root filesystem with the container can.
func flip(t *testing.T, path string, others ...string) (stop func()) {
	t.Helper()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ; n++ {
			other := others[n/2%len(others)] // to and fro with each
			if err := unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE); err != nil {
				t.Errorf("exchange %s and %s: %v", path, other, err)
				return
			}
			select {
			case <-done:
				if n%2 == 1 {
					return
				}
			case <-time.After(time.Duration(rand.IntN(500)) * time.Microsecond):
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

// hostile is an image with the attacker in it.
func hostile(t testing.TB) string {
	t.Helper()
	dir := image(t)
	data, err := os.ReadFile(attacker)
	if err == nil {
		err = os.WriteFile(dir+"/bin/attacker", data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// attempt runs the attacker, or another program if change says so, and returns what it wrote.
// That it does not start is an answer too.
func attempt(t testing.TB, args []string, change func(s *specs.Spec, c *Config)) (string, error) {
	t.Helper()
	s := spec(append([]string{"/bin/attacker"}, args...)...)
	c := Config{ID: "attack", Spec: s}
	if change != nil {
		change(s, &c)
	}
	if c.Rootfs.Lower == nil && c.Rootfs.Dir == "" {
		c.Rootfs = layers(t, hostile(t))
	}
	return launched(t, &c.Stdout, &c.Stderr, func(ctx context.Context) (*Process, error) { return shared.Create(ctx, c) })
}

// attemptExec is attempt in a container that runs.
func attemptExec(t testing.TB, c ExecConfig) (string, error) {
	t.Helper()
	return launched(t, &c.Stdout, &c.Stderr, func(ctx context.Context) (*Process, error) { return shared.Exec(ctx, c) })
}

func launched(t testing.TB, stdout, stderr **os.File, create func(context.Context) (*Process, error)) (string, error) {
	t.Helper()
	patience := 10 * time.Second
	if unguarded() {
		patience = 2 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	*stdout, *stderr = w, w
	p, err := create(ctx)
	if err == nil {
		if p.Console() != nil {
			defer p.Console().Close()
		}
		if err = p.Start(ctx); err != nil {
			unix.Wait4(p.PID(), nil, 0, nil) // it may have to be reaped
			p.Close()
		}
	}
	w.Close()
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("the start does not end: %v", err), nil
	}
	if err != nil {
		return "", err
	}
	out, _ := io.ReadAll(r)
	wait(t, p)
	return string(out), nil
}

// prison is a container with an attacker in it that waits for somebody to join it.
type prison struct {
	p   *Process
	in  *os.File
	out *os.File
}

func imprison(t *testing.T, change func(s *specs.Spec, c *Config), args ...string) *prison {
	t.Helper()
	s := spec(append([]string{"/bin/attacker"}, args...)...)
	inR, in, _ := os.Pipe()
	out, outW, _ := os.Pipe()
	c := Config{ID: "prison", Spec: s, Rootfs: layers(t, hostile(t)), Stdin: inR, Stdout: outW, Stderr: outW}
	if change != nil {
		change(s, &c)
	}
	p, err := shared.Create(contextT(t), c)
	if err == nil {
		err = p.Start(contextT(t))
	}
	inR.Close()
	outW.Close()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 6)
	if _, err := io.ReadFull(out, buf); err != nil {
		t.Fatalf("the attacker is not ready: %v", err)
	}
	return &prison{p, in, out}
}

// said tells the attacker to stop and returns what it reached.
func (p *prison) said() string {
	p.in.Close()
	out, _ := io.ReadAll(p.out)
	p.out.Close()
	return strings.TrimSpace(string(out))
}

// end is said and the end of the container. Whoever has joined it must have been reaped
// already: process 1 of a PID namespace does not end before.
func (p *prison) end(t *testing.T) string {
	t.Helper()
	out := p.said()
	wait(t, p.p)
	return out
}

// outside is a directory of the host that everybody may enter, with the attacker in it.
func outside(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "orlop-exec-test-outside")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(attacker)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "attacker"), data, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "secret"), []byte("the host's secret"), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
