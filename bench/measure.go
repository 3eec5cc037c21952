package main

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// podResult is what was measured of one runtime's pods.
type podResult struct {
	start  sample  // ms until the container runs
	cpu    float64 // CPU-ms per start, all processes of runtime and pod included
	remove sample  // ms
	perSec float64 // pods per second, 8 at once
	idle   float64 // KiB of PSS that the runtime's own processes grow by per idle pod
	base   float64 // KiB of PSS of the runtime's own processes with no pod
	pull   sample  // ms
	starts int
}

// starts measures n pod starts one after another and adds them to r.
func (r *podResult) measureStarts(ctx context.Context, p peer, round, n int) error {
	var cpu time.Duration
	for i := range n {
		name := fmt.Sprintf("bench-%d-%d", round, i)
		c0, err := cpuTime(p.Group())
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := p.StartPod(ctx, name); err != nil {
			return fmt.Errorf("%s: start %s: %w", p.Name(), name, err)
		}
		r.start.add(time.Since(begin))
		c1, err := cpuTime(p.Group())
		if err != nil {
			return err
		}
		cpu += c1 - c0
		begin = time.Now()
		if err := p.RemovePod(ctx, name); err != nil {
			return fmt.Errorf("%s: remove %s: %w", p.Name(), name, err)
		}
		r.remove.add(time.Since(begin))
	}
	total := r.cpu*float64(r.starts) + float64(cpu)/float64(time.Millisecond)
	r.starts += n
	r.cpu = total / float64(r.starts)
	return nil
}

// measureIdle starts n pods, 8 at once, which gives the rate, lets them idle, and
// reads what the runtime's own processes have grown by.
func (r *podResult) measureIdle(ctx context.Context, p peer, n int) error {
	settle := 3 * time.Second
	time.Sleep(settle)
	before, _ := pss(p.Own)
	names := make(chan string)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	begin := time.Now()
	for range 8 {
		wg.Go(func() {
			for name := range names {
				if err := p.StartPod(ctx, name); err != nil {
					mu.Lock()
					first = fmt.Errorf("%s: start %s: %w", p.Name(), name, err)
					mu.Unlock()
				}
			}
		})
	}
	for i := range n {
		names <- fmt.Sprintf("idle-%d", i)
	}
	close(names)
	wg.Wait()
	if first != nil {
		return first
	}
	r.perSec = float64(n) / time.Since(begin).Seconds()
	time.Sleep(settle)
	after, _ := pss(p.Own)
	r.base, r.idle = before, (after-before)/float64(n)
	for i := range n {
		if err := p.RemovePod(ctx, fmt.Sprintf("idle-%d", i)); err != nil {
			return fmt.Errorf("%s: remove: %w", p.Name(), err)
		}
	}
	return nil
}

// measurePull fetches and unpacks the image and removes it again.
func (r *podResult) measurePull(ctx context.Context, p peer, ref string) error {
	begin := time.Now()
	if err := p.Pull(ctx, ref); err != nil {
		return fmt.Errorf("%s: pull: %w", p.Name(), err)
	}
	r.pull.add(time.Since(begin))
	if err := p.Drop(ctx, ref); err != nil {
		return fmt.Errorf("%s: remove the image: %w", p.Name(), err)
	}
	return nil
}

// startResult is what was measured of one starter's containers.
type startResult struct {
	started, whole sample
	cpu            float64 // CPU-ms per container, from nothing to removed
	n              int
}

func (r *startResult) measure(ctx context.Context, s starter, round, n int) error {
	c0, err := cpuTime(s.Group())
	if err != nil {
		return err
	}
	for i := range n {
		started, whole, err := s.Run(ctx, fmt.Sprintf("bench-%d-%d", round, i))
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name(), err)
		}
		r.started.add(started)
		r.whole.add(whole)
	}
	c1, err := cpuTime(s.Group())
	if err != nil {
		return err
	}
	total := r.cpu*float64(r.n) + float64(c1-c0)/float64(time.Millisecond)
	r.n += n
	r.cpu = total / float64(r.n)
	return nil
}
