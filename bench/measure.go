package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// measure runs everything that is wanted, in interleaved rounds.
func measure(ctx context.Context, o options) (*results, error) {
	r := &results{At: time.Now().UTC(), Machine: machine(), Rounds: o.rounds, Starts: o.starts, Pods: o.pods, Idle: o.idle, Parallel: o.parallel, Soak: o.soak,
		PullFiles: o.files, PullMiB: o.mib, BinaryBytes: make(map[string]int64)}
	if !o.pulls {
		r.PullFiles = 0
	}
	for _, b := range []string{"orlop", "orlop-keeper", "orlop-init", "orlop-oci"} {
		if fi, err := os.Stat(filepath.Join(o.bin, b)); err == nil {
			r.BinaryBytes[b] = fi.Size()
		}
	}
	for _, d := range []string{"tmp", "images"} {
		if err := os.MkdirAll(filepath.Join(o.dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	os.Setenv("TMPDIR", filepath.Join(o.dir, "tmp")) // podman and containerd unpack there
	var reg registry
	if o.pods > 0 {
		say("making the images")
		var stop func()
		var err error
		if reg, stop, err = serveImages(filepath.Join(o.dir, "images"), o); err != nil {
			return nil, err
		}
		defer stop()
	}
	starters, err := openStarters(ctx, o, r)
	if err != nil {
		return nil, err
	}
	runtimes, err := openRuntimes(ctx, o, reg, r)
	if err != nil {
		return nil, err
	}
	for round := range o.rounds {
		for i, s := range starters {
			say("round %d: containers of %s", round+1, s.Name())
			if err := r.Containers[i].measure(ctx, s, round, o.starts); err != nil {
				return nil, fmt.Errorf("containers of %s: %w", s.Name(), err)
			}
		}
		for i, p := range runtimes {
			say("round %d: pods of %s", round+1, p.Name())
			if err := r.Runtimes[i].measureStarts(ctx, p, round, o.pods); err != nil {
				return nil, fmt.Errorf("pods of %s: %w", p.Name(), err)
			}
			if _, same := p.(*orlopCRI); same || !o.pulls { // pulls are the same on either socket
				continue
			}
			say("round %d: pull by %s", round+1, p.Name())
			if err := r.Runtimes[i].measurePull(ctx, p, reg.big()); err != nil {
				return nil, fmt.Errorf("%s: %w", p.Name(), err)
			}
		}
	}
	for i, p := range runtimes {
		say("%d pods of %s, %d at once", o.idle, p.Name(), atOnce)
		if err := r.Runtimes[i].measureIdle(ctx, p, o); err != nil {
			return nil, fmt.Errorf("idle pods of %s: %w", p.Name(), err)
		}
	}
	for i, s := range starters {
		say("many containers of %s", s.Name())
		if err := r.Containers[i].measureMany(ctx, s, o); err != nil {
			return nil, fmt.Errorf("many containers of %s: %w", s.Name(), err)
		}
	}
	return r, nil
}

func openStarters(ctx context.Context, o options, r *results) (list []starter, err error) {
	if o.starts == 0 {
		return nil, nil
	}
	root := filepath.Join(o.dir, "root")
	if err := makeRoot(root); err != nil {
		return nil, err
	}
	dir := func(name string) string { return filepath.Join(o.dir, "start", name) }
	all := []starter{
		&keeperStarter{bin: o.bin, dir: dir("orlop"), root: root},
		&ociCommand{name: "orlop-oci", program: filepath.Join(o.bin, "orlop-oci"), dir: dir("orlop-oci"), root: root},
		&ociCommand{name: "runc", program: "runc", dir: dir("runc"), root: root},
		&ociCommand{name: "crun", program: "crun", dir: dir("crun"), root: root},
	}
	for _, s := range all {
		switch {
		case !o.wants(s.Name()):
			continue
		case s.Name() == "crun" && isV1():
			continue // it refuses a hierarchy with a controller of its own beside cgroup v1's
		case s.Name() == "orlop-oci" && r.BinaryBytes["orlop-oci"] == 0:
			continue // this tree has none
		}
		c := &containerResult{Name: s.Name()}
		if c.Version, err = s.Version(); err != nil {
			return nil, err
		}
		if err := s.Start(ctx); err != nil {
			return nil, fmt.Errorf("start %s: %w", s.Name(), err)
		}
		list, r.Containers = append(list, s), append(r.Containers, c)
	}
	return list, nil
}

func openRuntimes(ctx context.Context, o options, reg registry, r *results) (list []podRuntime, err error) {
	if o.pods == 0 {
		return nil, nil
	}
	for _, p := range []podRuntime{
		&orlop{instance: "orlop", block: 232, bin: o.bin, dir: o.dir + "/orlop", registry: reg},
		&orlopCRI{daemon: &orlop{instance: "orlop-cri", block: 234, bin: o.bin, dir: o.dir + "/orlop-cri", registry: reg}},
		&containerd{dir: o.dir + "/containerd", registry: reg},
		&podman{dir: o.dir + "/podman", registry: reg},
	} {
		if !o.wants(p.Name()) {
			continue
		}
		res := &podResult{Name: p.Name()}
		if res.Version, err = p.Version(); err != nil {
			return nil, err
		}
		if err := p.Start(ctx); err != nil {
			return nil, fmt.Errorf("start %s: %w", p.Name(), err)
		}
		if err := p.Pull(ctx, reg.idle()); err != nil {
			return nil, fmt.Errorf("%s: pull %s: %w", p.Name(), reg.idle(), err)
		}
		list, r.Runtimes = append(list, p), append(r.Runtimes, res)
	}
	return list, nil
}

// counted runs fn and returns the CPU time that the group used over it, and over what it
// leaves to be done afterwards.
func counted(g group, fn func() error) (cpu time.Duration, err error) {
	before, err := g.cpu()
	if err != nil {
		return 0, err
	}
	if err := fn(); err != nil {
		return 0, err
	}
	time.Sleep(aftermath)
	after, err := g.cpu()
	return after - before, err
}

// aftermath is how long after an answer work still counts as caused by the request.
const aftermath = 50 * time.Millisecond

func (c *containerResult) measure(ctx context.Context, s starter, round, n int) error {
	for i := range n + 1 { // the first of a round warms caches
		if err := ctx.Err(); err != nil {
			return err
		}
		id := fmt.Sprintf("r%d-%d", round, i)
		if err := s.Prepare(id); err != nil {
			return err
		}
		var took time.Duration
		cpu, err := counted(s.Group(), func() error {
			begin := time.Now()
			defer func() { took = time.Since(begin) }()
			return s.Run(ctx, id)
		})
		if err != nil {
			return err
		}
		if i > 0 {
			c.Run.add(took)
			c.RunCPU.add(cpu, 1)
		}
		if err := s.Remove(id); err != nil {
			return err
		}
	}
	id := fmt.Sprintf("r%d-exec", round)
	release, err := s.Hold(ctx, id)
	if err != nil {
		return err
	}
	cpu, err := counted(s.Group(), func() error {
		for range n {
			begin := time.Now()
			if err := s.Exec(ctx, id); err != nil {
				return err
			}
			c.Exec.add(time.Since(begin))
		}
		return nil
	})
	c.ExecCPU.add(cpu, n)
	return errors.Join(err, release())
}

// measureMany starts containers all at once, and then many one after another.
func (c *containerResult) measureMany(ctx context.Context, s starter, o options) error {
	for i := range o.parallel {
		if err := s.Prepare(fmt.Sprintf("p-%d", i)); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	bad := make([]error, o.parallel)
	begin := time.Now()
	for i := range o.parallel {
		wg.Go(func() { bad[i] = s.Run(ctx, fmt.Sprintf("p-%d", i)) })
	}
	wg.Wait()
	c.ParallelMs = float64(time.Since(begin)) / float64(time.Millisecond)
	for i, err := range bad {
		if err != nil {
			c.Failures = append(c.Failures, err.Error())
		}
		if err := s.Remove(fmt.Sprintf("p-%d", i)); err != nil {
			return err
		}
	}
	return c.soak(ctx, s, o)
}

// soak runs containers of Orlop one after another, a tenth as many before to warm up, and
// reads memory before and after.
func (c *containerResult) soak(ctx context.Context, s starter, o options) (err error) {
	n := o.soak
	if n == 0 || !strings.HasPrefix(c.Name, "orlop") {
		return nil
	}
	one := func(i int) error {
		id := fmt.Sprintf("s-%d", i)
		return errors.Join(ctx.Err(), s.Prepare(id), s.Run(ctx, id), s.Remove(id))
	}
	for i := range n / 10 {
		if err := one(i); err != nil {
			return err
		}
	}
	time.Sleep(o.settle)
	kernel, err := field("/proc/meminfo", "SUnreclaim:")
	if err != nil {
		return err
	}
	if c.Before, err = s.Group().memory(); err != nil {
		return err
	}
	begin := time.Now()
	for i := range n {
		if err := one(i); err != nil {
			return err
		}
	}
	c.SoakMs = float64(time.Since(begin)) / float64(time.Millisecond) / float64(n)
	time.Sleep(o.settle)
	if c.After, err = s.Group().memory(); err != nil {
		return err
	}
	now, err := field("/proc/meminfo", "SUnreclaim:")
	c.KernelKiB = now - kernel
	return err
}

// measureStarts measures n pod starts one after another, and n commands in a pod.
func (r *podResult) measureStarts(ctx context.Context, p podRuntime, round, n int) error {
	for i := range n + 1 { // the first of a round warms caches
		if err := ctx.Err(); err != nil {
			return err
		}
		name := fmt.Sprintf("bench-%d-%d", round, i)
		var took [2]time.Duration
		var cpu [2]time.Duration
		for j, fn := range []func(context.Context, string) error{p.StartPod, p.RemovePod} {
			var err error
			cpu[j], err = counted(p.Group(), func() error {
				begin := time.Now()
				defer func() { took[j] = time.Since(begin) }()
				return fn(ctx, name)
			})
			if err != nil {
				return err
			}
		}
		if i > 0 {
			r.Start.add(took[0])
			r.Remove.add(took[1])
			r.StartCPU.add(cpu[0], 1)
			r.RemoveCPU.add(cpu[1], 1)
		}
	}
	if e, ok := p.(executes); ok {
		return r.measureExec(ctx, p, e, round, n)
	}
	return nil
}

func (r *podResult) measureExec(ctx context.Context, p podRuntime, e executes, round, n int) error {
	name := fmt.Sprintf("exec-%d", round)
	if err := p.StartPod(ctx, name); err != nil {
		return err
	}
	if err := e.Exec(ctx, name); err != nil { // warms caches
		return err
	}
	cpu, err := counted(p.Group(), func() error {
		for range n {
			begin := time.Now()
			if err := e.Exec(ctx, name); err != nil {
				return err
			}
			r.Exec.add(time.Since(begin))
		}
		return nil
	})
	r.ExecCPU.add(cpu, n)
	return errors.Join(err, p.RemovePod(ctx, name))
}

const atOnce = 8

// measureIdle starts pods, several at once, which gives the rate, lets them idle, and
// reads the memory of the runtime's own processes before and after.
func (r *podResult) measureIdle(ctx context.Context, p podRuntime, o options) (err error) {
	if o.idle == 0 {
		return nil
	}
	time.Sleep(o.settle)
	if r.Empty, err = p.Group().memory(); err != nil {
		return err
	}
	each := func(fn func(context.Context, string) error) error {
		names := make(chan string)
		bad := make([]error, atOnce)
		var wg sync.WaitGroup
		for i := range atOnce {
			wg.Go(func() {
				for name := range names {
					bad[i] = errors.Join(bad[i], fn(ctx, name))
				}
			})
		}
		for i := range o.idle {
			names <- fmt.Sprintf("idle-%d", i)
		}
		close(names)
		wg.Wait()
		return errors.Join(slices.Concat(bad, []error{ctx.Err()})...)
	}
	begin := time.Now()
	if err := each(p.StartPod); err != nil {
		return err
	}
	r.PerSecond = float64(o.idle) / time.Since(begin).Seconds()
	time.Sleep(o.settle)
	if r.Full, err = p.Group().memory(); err != nil {
		return err
	}
	return each(p.RemovePod)
}

// measurePull fetches and unpacks the image and removes it again.
func (r *podResult) measurePull(ctx context.Context, p podRuntime, ref string) error {
	cpu, err := counted(p.Group(), func() error {
		begin := time.Now()
		defer func() { r.Pull.add(time.Since(begin)) }()
		return p.Pull(ctx, ref)
	})
	if err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	r.PullCPU.add(cpu, 1)
	if err := p.Drop(ctx, ref); err != nil {
		return fmt.Errorf("remove the image: %w", err)
	}
	return nil
}
