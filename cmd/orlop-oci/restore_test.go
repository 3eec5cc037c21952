package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/test/checkpoints"
)

// saved makes a checkpoint of a container that counts, which it starts.
func (r *rig) saved() (dir string, again func()) {
	r.t.Helper()
	r.ok("run", "-d", r.id)
	r.counts()
	return r.checkpointed()
}

// checkpointed makes a checkpoint. again brings back what it does not save, the file that the container
// writes to, as it was then.
func (r *rig) checkpointed(flags ...string) (dir string, again func()) {
	r.t.Helper()
	dir = filepath.Join(r.t.TempDir(), "images")
	if res := r.run(slices.Concat([]string{"checkpoint", "--image-path", dir}, flags, []string{r.id})...); res.code != 0 {
		r.t.Fatalf("checkpoint: %+v\n%s", res, lastLines(dir+"/dump.log"))
	}
	log := r.bundle + "/rootfs/log"
	st, err := os.Stat(log)
	if err != nil {
		r.t.Fatal(err)
	}
	return dir, func() {
		r.t.Helper()
		if err := os.Truncate(log, st.Size()); err != nil {
			r.t.Fatal(err)
		}
	}
}

// restores restores what saved has saved, sees that it goes on, and ends it.
func (r *rig) restores(dir string) {
	r.t.Helper()
	if res := r.run("restore", "-d", "--image-path", dir, r.id); res.code != 0 {
		r.t.Fatalf("restore: %+v\n%s", res, lastLines(dir+"/restore.log"))
	}
	r.counts()
	r.kill()
}

// A restore that is killed, wherever it is, leaves a container that can be deleted, and nothing after that; and the
// checkpoint is as good as before.
func TestRestoreFaults(t *testing.T) {
	checkpoints.NeedCRIU(t, "criu")
	r := counterRig(t)
	dir, again := r.saved()
	pid := filepath.Join(t.TempDir(), "pid")
	reached := 0
	for _, point := range points(t) {
		restore := strings.HasPrefix(point, "container.restore.")
		if !restore && (!strings.HasPrefix(point, "container.create.") || point == "container.create.process-made") {
			continue
		}
		again()
		if !r.killedAt(point, "restore", "-d", "--image-path", dir, "--pid-file", pid, r.id) {
			t.Errorf("%s: nothing reaches this point", point)
			r.kill()
			continue
		}
		reached++
		r.ok("delete", "--force", r.id)
		r.gone()
	}
	if reached < 10 {
		t.Errorf("only %d points", reached)
	}
	again()
	r.restores(dir)
}

// A signal ends a restore, here while hooks run and CRIU waits for them. Nothing is left of it.
func TestRestoreInterrupted(t *testing.T) {
	checkpoints.NeedCRIU(t, "criu")
	r := counterRig(t)
	dir, _ := r.saved()
	here := filepath.Join(t.TempDir(), "here")
	r.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo >" + here + "; exec sleep 1000"}}}}
	r.save()
	cmd := r.command("restore", "--image-path", dir, r.id)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the hook does not run", func() (bool, string) { _, err := os.Stat(here); return err == nil, "" })
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); code(t, err) == 0 || !strings.Contains(said.String(), "restore "+r.id) {
		t.Errorf("%v, %s", err, said.String())
	}
	r.gone()
	// A hook that fails does the same.
	r.spec.Hooks.CreateRuntime[0].Args[2] = "echo no network >&2; exit 3"
	r.save()
	r.fails("no network", "restore", "-d", "--image-path", dir, r.id)
	r.gone()
}

// In the foreground the command stays, the standard streams are its own, and its exit code is the program's.
func TestRestoreForeground(t *testing.T) {
	checkpoints.NeedCRIU(t, "criu")
	r := newRig(t, "/bin/sh", "-c", "echo first; read x; echo got $x; read x; exit $x")
	pipe := func() (reads, writes *os.File) {
		t.Helper()
		reads, writes, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { reads.Close(); writes.Close() })
		return reads, writes
	}
	start := func(args ...string) (cmd *exec.Cmd, in, out *os.File, said *bytes.Buffer) {
		t.Helper()
		inside, in := pipe()
		out, outside := pipe()
		said = &bytes.Buffer{}
		cmd = r.command(append(args, r.id)...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = inside, outside, said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		inside.Close()
		outside.Close()
		out.SetReadDeadline(time.Now().Add(40 * time.Second))
		return cmd, in, out, said
	}
	reads := func(out *os.File, want string) {
		t.Helper()
		got := make([]byte, len(want))
		if n, err := io.ReadFull(out, got); string(got[:n]) != want {
			t.Fatalf("it wrote %q, want %q (%v)", got[:n], want, err)
		}
	}
	dir := filepath.Join(t.TempDir(), "images")
	cmd, _, out, said := start("run")
	reads(out, "first\n")
	r.ok("checkpoint", "--image-path", dir, r.id)
	if err := cmd.Wait(); code(t, err) != 137 { // its container has ended
		t.Errorf("run ended so: %v, %s", err, said)
	}
	r.gone()

	cmd, in, out, said := start("restore", "--image-path", dir)
	if _, err := in.WriteString("it\n"); err != nil {
		t.Fatal(err)
	}
	reads(out, "got it\n")
	if st := r.state().Status; st != "running" {
		t.Errorf("status %s", st)
	}
	in.WriteString("42\n")
	if err := cmd.Wait(); code(t, err) != 42 || said.Len() > 0 {
		t.Errorf("restore ended so: %v, %s", err, said)
	}
	r.gone()

	// One that a signal ends.
	cmd, in, out, said = start("restore", "--image-path", dir)
	in.WriteString("again\n")
	reads(out, "got again\n")
	r.ok("kill", r.id, "KILL")
	if err := cmd.Wait(); code(t, err) != 137 || said.Len() > 0 {
		t.Errorf("restore ended so: %v, %s", err, said)
	}
	r.gone()
}

// A connection within the container's network goes on where it was, with --tcp-established; without it a checkpoint is
// refused, and the container goes on.
func TestCheckpointTCP(t *testing.T) {
	checkpoints.NeedCRIU(t, "criu")
	for _, name := range []string{"own", "joined"} {
		t.Run(name, func(t *testing.T) {
			r := counterRig(t, "tcp", "7001")
			ns := specs.LinuxNamespace{Type: specs.NetworkNamespace}
			if name == "joined" {
				ns.Path = netns(t)
				if out, err := exec.Command("ip", "-n", filepath.Base(ns.Path), "link", "set", "lo", "up").CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			r.spec.Linux.Namespaces = append(r.spec.Linux.Namespaces, ns)
			r.save()
			if name == "own" {
				r.spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "77"}
				r.save()
			}
			r.ok("run", "-d", r.id)
			r.counts()
			if name == "own" {
				r.fails("tcp-established", "checkpoint", "--image-path", filepath.Join(t.TempDir(), "images"), r.id)
				r.counts()
			}
			dir, _ := r.checkpointed("--tcp-established")
			if res := r.run("restore", "-d", "--image-path", dir, "--tcp-established", r.id); res.code != 0 {
				t.Fatalf("%+v\n%s", res, lastLines(dir+"/restore.log"))
			}
			r.counts()
			if name == "joined" {
				unlocked(t, ns.Path)
			} else if out := r.ok("exec", r.id, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"); out != "77\n" {
				t.Errorf("its sysctl is %q", out)
			}
			r.kill()
		})
	}
}

// unlocked: packets go through a network namespace that CRIU had locked.
func unlocked(t *testing.T, ns string) {
	t.Helper()
	out, err := exec.Command("ip", "netns", "exec", filepath.Base(ns), "iptables", "-S").CombinedOutput()
	if err != nil || strings.Contains(string(out), "CRIU") {
		t.Errorf("%v, the rules of the network namespace:\n%s", err, out)
	}
}

// Memory is fetched when it is used, from a server of pages.
func TestRestoreLazy(t *testing.T) {
	checkpoints.NeedCRIU(t, "criu")
	r := counterRig(t)
	dir, _ := r.saved()
	server := exec.Command("criu", "lazy-pages", "--images-dir", dir, "--work-dir", dir, "-v4", "-o", "lazy.log")
	var said bytes.Buffer
	server.Stdout, server.Stderr = &said, &said
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Process.Kill() }) // it ends when it has nothing more to give, and is reaped with orphans
	eventually(t, "the server of pages does not listen", func() (bool, string) {
		_, err := os.Stat(dir + "/lazy-pages.socket")
		return err == nil, fmt.Sprint(said.String(), lastLines(dir+"/lazy.log"))
	})
	if res := r.run("restore", "-d", "--lazy-pages", "--image-path", dir, r.id); res.code != 0 {
		t.Fatalf("%+v\n%s", res, lastLines(dir+"/restore.log"))
	}
	r.counts()
	all := regexp.MustCompile(`UFFD transferred pages: \((\d+)/(\d+)\)`)
	eventually(t, "not all pages have come", func() (bool, string) {
		log := lastLines(dir + "/lazy.log")
		m := all.FindStringSubmatch(log)
		return m != nil && m[1] == m[2] && m[1] != "0", log
	})
	r.counts()
	r.kill()
}
