package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
)

// write writes docs/benchmarks.md.
func (r *results) write(w io.Writer) {
	p := func(format string, args ...any) { fmt.Fprintf(w, format, args...) }
	p(`# Benchmarks

Written by %s on %s: Orlop and what the distribution packages, side by side in %d interleaved rounds of one run on one machine
(%s). Wall time moves with whatever else the machine does: **ratios**, and CPU time, are what to read.

`, "`make bench`", r.At.Format("2 January 2006"), r.Rounds, r.Machine)
	for _, v := range r.versions() {
		p("- %s\n", v)
	}
	p("\n## Targets\n\nA ratio is Orlop's figure divided by the peer's: less is better.\n\n")
	p("| what | target | Orlop | peer | ratio | reached |\n|---|---|---|---|---|---|\n")
	var missed []target
	for _, t := range r.targets() {
		verdict := "yes"
		if !t.ok {
			verdict = "**no**"
			missed = append(missed, t)
		}
		p("| %s | %s | %s | %s | %s | %s |\n", t.what, t.want, t.orlop, t.peer, t.ratio, verdict)
	}
	if len(missed) > 0 {
		p("\nMissed:\n\n")
	}
	for _, t := range missed {
		p("- %s: %s (target %s)", t.what, t.orlop, t.want)
		if t.cause != "" {
			p("; %s", t.cause)
		}
		p("\n")
	}
	r.writePods(p)
	if len(r.Containers) > 0 {
		p("\n## Single containers\n\n`/bin/true` of a static busybox on overlayfs over the host's disk, default seccomp profile, own namespaces, memory, CPU and process limits,\n%d times each, from the request until it has ended and nothing of it is left. *orlop* is the keeper, asked as the daemon asks; the others are command lines, `run` and `exec`.\n\n", r.Rounds*r.Starts)
		r.writeContainers(p)
	}
	if r.V2 != nil {
		p("\n## Single containers on cgroup v2\n\nThe same on a cgroup-v2 machine that QEMU emulates without hardware help (%s), its files in memory: crun refuses hybrid cgroups. Times are some 20 times those of hardware.\n\n", r.V2.Machine)
		for _, v := range r.V2.versions() {
			p("- %s\n", v)
		}
		p("\n")
		r.V2.writeContainers(p)
	}
	p("\n## How\n\nThe run has mount, network, PID and IPC namespaces of its own and its registry on their loopback, so it leaves nothing behind however it ends. CPU time is\nread from a control group that holds a runtime's processes and those of its containers, and goes on to %s after the answer. The first start of each\nround warms caches and is not counted. *orlop* is given manifests, *orlop-cri* is\nanother daemon like it, driven by CRI, step by step as kubelet does, from RunPodSandbox until the container's status is RUNNING; containerd is driven by the same client, on the reference bridge and portmap plugins with a pause container; podman runs single containers\non the same plugins; all with the default seccomp profile, a memory limit and CPU shares. `bench -help` lists what can be changed.\n", aftermath)
}

// ratio is empty where there is nothing to divide by.
func ratio(ours, theirs float64) string {
	if theirs <= 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", ours/theirs)
}

type printer = func(string, ...any)

func (r *results) writePods(p printer) {
	if len(r.Runtimes) == 0 {
		return
	}
	p("\n## Pods\n\nOne idle container with a network of its own, default seccomp profile, memory limit; %d starts one after another, then %d pods at %d at once, left idle.\nMemory is the growth in PSS of the runtime's own processes (daemon, keeper, shims, monitors, pause containers) per idle pod, the workload left out.\n\n", r.Rounds*r.Pods, r.Idle, atOnce)
	rows := []struct {
		what   string
		value  func(*podResult) float64
		format func(float64) string
		more   bool // is better
	}{
		{"start p50", func(p *podResult) float64 { return p.Start.at(.5) }, ms, false},
		{"start p95", func(p *podResult) float64 { return p.Start.at(.95) }, ms, false},
		{"CPU per start", func(p *podResult) float64 { return p.StartCPU.each() }, ms, false},
		{"remove p50", func(p *podResult) float64 { return p.Remove.at(.5) }, ms, false},
		{"CPU per removal", func(p *podResult) float64 { return p.RemoveCPU.each() }, ms, false},
		{"ExecSync p50", func(p *podResult) float64 { return p.Exec.at(.5) }, ms, false},
		{"ExecSync p95", func(p *podResult) float64 { return p.Exec.at(.95) }, ms, false},
		{"CPU per ExecSync", func(p *podResult) float64 { return p.ExecCPU.each() }, ms, false},
		{"pods per second", func(p *podResult) float64 { return p.PerSecond }, func(v float64) string { return fmt.Sprintf("%.1f", v) }, true},
		{"memory per idle pod", func(p *podResult) float64 { return p.perPodKiB(r.Idle) }, kib, false},
		{"memory without pods", func(p *podResult) float64 { return totalPSS(p.Empty) }, kib, false},
		{"pull and unpack p50", func(p *podResult) float64 { return p.Pull.at(.5) }, ms, false},
		{"CPU per pull", func(p *podResult) float64 { return p.PullCPU.each() }, ms, false},
	}
	// A peer on the CRI is compared with Orlop on the CRI.
	ours := func(peer *podResult) *podResult {
		if driven := r.runtime("orlop-cri"); driven != nil && peer.Name == "containerd" {
			return driven
		}
		return r.runtime("orlop")
	}
	line, rule := "| |", "|---|"
	for _, x := range r.Runtimes {
		line, rule = line+" "+x.Name+" |", rule+"---|"
	}
	var peers []*podResult
	for _, x := range r.Runtimes {
		if us := ours(x); us != nil && !strings.HasPrefix(x.Name, "orlop") {
			peers = append(peers, x)
			line, rule = line+" "+us.Name+" to "+x.Name+" |", rule+"---|"
		}
	}
	p("%s\n%s\n", line, rule)
	for _, row := range rows {
		if strings.Contains(row.what, "pull") && r.PullFiles == 0 || r.Idle == 0 && (strings.Contains(row.what, "memory") || row.more) {
			continue
		}
		lacks := func(x *podResult) bool {
			return strings.Contains(row.what, "ExecSync") && len(x.Exec) == 0 || strings.Contains(row.what, "pull") && x.Name == "orlop-cri"
		}
		p("| %s |", row.what)
		for _, x := range r.Runtimes {
			if lacks(x) {
				p(" |")
			} else {
				p(" %s |", row.format(row.value(x)))
			}
		}
		for _, x := range peers {
			us := ours(x)
			if lacks(us) {
				us = r.runtime("orlop") // which has pulled as the other would
			}
			if lacks(x) || us == nil {
				p(" |")
			} else {
				p(" %s |", ratio(row.value(us), row.value(x)))
			}
		}
		p("\n")
	}
	if r.PullFiles > 0 {
		p("\nThe image pulled has %d files and %d MiB of content in %d gzipped layers; every pull is a whole one, from a registry on loopback.\n", r.PullFiles, r.PullMiB, bigLayers)
	}
}

func (r *results) writeContainers(p printer) {
	header(p, r.Containers, func(c *containerResult) string { return c.Name })
	us := r.container("orlop")
	row := func(what string, value func(*containerResult) float64, format func(float64) string) {
		p("| %s |", what)
		for _, x := range r.Containers {
			p(" %s |", format(value(x)))
		}
		for _, x := range r.Containers {
			if us != nil && x != us {
				p(" %s |", ratio(value(us), value(x)))
			}
		}
		p("\n")
	}
	row("run p50", func(c *containerResult) float64 { return c.Run.at(.5) }, ms)
	row("run p95", func(c *containerResult) float64 { return c.Run.at(.95) }, ms)
	row("CPU per run", func(c *containerResult) float64 { return c.RunCPU.each() }, ms)
	row("exec p50", func(c *containerResult) float64 { return c.Exec.at(.5) }, ms)
	row("exec p95", func(c *containerResult) float64 { return c.Exec.at(.95) }, ms)
	row("CPU per exec", func(c *containerResult) float64 { return c.ExecCPU.each() }, ms)
	if r.Parallel > 0 {
		row(fmt.Sprintf("%d at once, until all are gone", r.Parallel), func(c *containerResult) float64 { return c.ParallelMs }, ms)
		for _, c := range r.Containers {
			if len(c.Failures) > 0 {
				p("\n%s: %d of %d at once failed, the first with: %s\n", c.Name, len(c.Failures), r.Parallel, c.Failures[0])
			}
		}
	}
	if r.Soak > 0 {
		p("\n%d containers one after another, memory after a tenth as many to warm up and at the end:\n\n", r.Soak)
		for _, c := range r.Containers {
			if c.SoakMs == 0 {
				continue
			}
			p("- %s: %.1f ms each; its processes' PSS %s before, %s after; the kernel's unreclaimable memory, the whole machine's, grew by %s\n",
				c.Name, c.SoakMs, kib(totalPSS(c.Before)), kib(totalPSS(c.After)), kib(c.KernelKiB))
		}
	}
}

// header begins a table with a column for each, and one for Orlop's ratio to each other.
func header[T any](p printer, list []T, name func(T) string) {
	line, rule := "| |", "|---|"
	ours := slices.ContainsFunc(list, func(x T) bool { return name(x) == "orlop" })
	for _, x := range list {
		line, rule = line+" "+name(x)+" |", rule+"---|"
	}
	for _, x := range list {
		if ours && name(x) != "orlop" {
			line, rule = line+" ratio to "+name(x)+" |", rule+"---|"
		}
	}
	p("%s\n%s\n", line, rule)
}

func (r *results) versions() []string {
	all := make(map[string]bool)
	for _, c := range r.Containers {
		all[c.Version] = true
	}
	for _, p := range r.Runtimes {
		all[p.Version] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// machine describes where this runs.
func machine() string {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	layout := "cgroup v2"
	if isV1() {
		layout = "hybrid cgroup v1"
	}
	return fmt.Sprintf("%d cores, Linux %s, %s", runtime.NumCPU(), strings.TrimSpace(string(kernel)), layout)
}
