package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// report writes docs/benchmarks.md.
func report(w io.Writer, o options, starters []starter, starts map[string]*startResult, peers []peer, pods map[string]*podResult) {
	fmt.Fprintf(w, `# Benchmarks

Written by %s on %s. Orlop and what the distribution packages run side by side, in %d interleaved rounds
of one run on one machine (%s). Wall time moves with whatever else the machine does; **ratios** and CPU time are what
to read. A ratio is the peer's figure divided by Orlop's: above 1, Orlop is better.

`, "`make bench`", time.Now().UTC().Format("2 January 2006"), o.rounds, machine())

	ours, ok := starts["orlop"]
	fmt.Fprintf(w, "## One container\n\n`/bin/true` of a static busybox on overlayfs, default seccomp profile, own namespaces, memory, CPU and process limits, %d starts each. *Started* is from the request until\nthe program executes, *whole* until it has ended and nothing of it is left.\n\n", o.rounds*o.starts)
	fmt.Fprintln(w, "| | started p50 | p95 | whole p50 | p95 | CPU per container | ratio started p50 | ratio whole p50 | ratio CPU |\n|---|---|---|---|---|---|---|---|---|")
	for _, s := range starters {
		r := starts[s.Name()]
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | ", s.Name(), ms(r.started.at(.5)), ms(r.started.at(.95)), ms(r.whole.at(.5)), ms(r.whole.at(.95)), ms(r.cpu))
		if ok && r != ours {
			fmt.Fprintf(w, "%.1f | %.1f | %.1f |\n", r.started.at(.5)/ours.started.at(.5), r.whole.at(.5)/ours.whole.at(.5), r.cpu/ours.cpu)
		} else {
			fmt.Fprintln(w, "| | |")
		}
	}

	fmt.Fprintf(w, "\n## Pods\n\nOne idle container, default seccomp, a memory limit, the runtime's own network, %d starts one after another; then %d at 8 at once, left\nidle, for rate and memory. CPU counts every process of runtime and pod. Memory is the growth in PSS of the runtime's own processes (daemon,\nkeeper, shims, monitors, pause containers), the workload left out.\n\n", o.rounds*o.pods, o.idle)
	fmt.Fprintln(w, "| | start p50 | p95 | CPU per start | remove p50 | pods per second | idle pod | with no pod | pull p50 |\n|---|---|---|---|---|---|---|---|---|")
	for _, p := range peers {
		r := pods[p.Name()]
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %.1f | %.0f KiB | %.1f MiB | %.1f s |\n", p.Name(), ms(r.start.at(.5)), ms(r.start.at(.95)), ms(r.cpu), ms(r.remove.at(.5)), r.perSec, r.idle, r.base/1024, r.pull.at(.5)/1000)
	}
	if us := pods["orlop"]; us != nil {
		fmt.Fprintln(w, "\n| ratio to Orlop | start p50 | p95 | CPU per start | remove p50 | pods per second | idle pod | pull p50 |\n|---|---|---|---|---|---|---|---|")
		for _, p := range peers {
			if r := pods[p.Name()]; r != us {
				fmt.Fprintf(w, "| %s | %.1f | %.1f | %.1f | %.1f | %.1f | %.0f | %.1f |\n", p.Name(), r.start.at(.5)/us.start.at(.5), r.start.at(.95)/us.start.at(.95), r.cpu/us.cpu,
					r.remove.at(.5)/us.remove.at(.5), us.perSec/r.perSec, r.idle/us.idle, r.pull.at(.5)/us.pull.at(.5))
			}
		}
	}
	fmt.Fprintf(w, "\nThe image pulled has %d files and %d MiB of content in %d layers, from a registry on this machine; a pull is whole each time.\n", bigFiles, bigBytes>>20, bigLayers)
}

func ms(v float64) string { return fmt.Sprintf("%.1f ms", v) }

// machine describes where it ran.
func machine() string {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	cpus, _ := exec.Command("nproc").Output()
	layout := "cgroup v2"
	if fileExists("/sys/fs/cgroup/cpuacct/cpuacct.usage") {
		layout = "hybrid cgroup v1"
	}
	return fmt.Sprintf("%s cores, Linux %s, %s", strings.TrimSpace(string(cpus)), strings.TrimSpace(string(kernel)), layout)
}
