package main

import "fmt"

// target is one line of what Orlop is to reach.
type target struct {
	what  string
	want  string
	orlop string
	peer  string // "" where none is compared
	ratio string // Orlop's figure divided by the peer's; "" where there is none
	ok    bool
	cause string // why it is missed, where that is known
}

// targets judges what was measured. What a run left out is left out here too.
func (r *results) targets() (list []target) {
	add := func(t target) { list = append(list, t) }
	atMost := func(what string, value, peer, ratio float64, format func(float64) string, peerName, cause string) {
		add(target{what: what, want: fmt.Sprintf("≤ %.2f of %s", ratio, peerName), orlop: format(value), peer: format(peer),
			ratio: fmt.Sprintf("%.2f", value/peer), ok: value <= ratio*peer, cause: cause})
	}
	limit := func(what string, value, most float64, format func(float64) string, cause string) {
		add(target{what: what, want: "≤ " + format(most), orlop: format(value), ok: value <= most, cause: cause})
	}
	if us, runc := r.container("orlop"), r.container("runc"); us != nil && runc != nil {
		atMost("container start to end, p50", us.Run.at(.5), runc.Run.at(.5), 10./55, ms, "runc", causes["container"])
		atMost("the same, CPU time", us.RunCPU.each(), runc.RunCPU.each(), 10./55, ms, "runc", causes["container"])
	}
	if us, runc := r.container("orlop-oci"), r.container("runc"); us != nil && runc != nil {
		atMost("`orlop-oci run`, p50", us.Run.at(.5), runc.Run.at(.5), 1./5, ms, "runc", causes["oci"])
		atMost("the same, CPU time", us.RunCPU.each(), runc.RunCPU.each(), 1./5, ms, "runc", causes["oci"])
	}
	if r.V2 != nil {
		for _, peer := range []struct {
			name  string
			ratio float64
		}{{"crun", 1. / 2}, {"runc", 1. / 5}} {
			us, them := r.V2.container("orlop-oci"), r.V2.container(peer.name)
			if us == nil || them == nil {
				continue
			}
			atMost("`orlop-oci run` on cgroup v2, p50", us.Run.at(.5), them.Run.at(.5), peer.ratio, ms, peer.name, causes["emulated"])
			atMost("the same, CPU time", us.RunCPU.each(), them.RunCPU.each(), peer.ratio, ms, peer.name, causes["emulated"])
			atMost("`orlop-oci exec` on cgroup v2, p50", us.Exec.at(.5), them.Exec.at(.5), peer.ratio, ms, peer.name, causes["emulated"])
			atMost("the same, CPU time", us.ExecCPU.each(), them.ExecCPU.each(), peer.ratio, ms, peer.name, causes["emulated"])
		}
	}
	for _, c := range r.Containers {
		if c.Name != "orlop" && c.Name != "orlop-oci" {
			continue
		}
		if r.Parallel > 0 {
			add(target{what: fmt.Sprintf("%s: %d containers at once", c.Name, r.Parallel), want: "no error",
				orlop: fmt.Sprintf("%d errors", len(c.Failures)), ok: len(c.Failures) == 0})
		}
		if r.Soak > 0 {
			grown := totalPSS(c.After) - totalPSS(c.Before)
			limit(fmt.Sprintf("%s: growth of its processes over %d starts, PSS", c.Name, r.Soak), grown, 1024, kib, "")
		}
	}
	us, ct := r.runtime("orlop"), r.runtime("containerd")
	if us != nil && ct != nil {
		atMost("pod start, p50", us.Start.at(.5), ct.Start.at(.5), .2, ms, "containerd", causes["pod"])
		atMost("pod start, p95", us.Start.at(.95), ct.Start.at(.95), .2, ms, "containerd", causes["pod"])
		atMost("pod start, CPU time", us.StartCPU.each(), ct.StartCPU.each(), .2, ms, "containerd", causes["pod cpu"])
		if r.PullFiles > 0 {
			atMost("pull and unpack, p50", us.Pull.at(.5), ct.Pull.at(.5), .5, ms, "containerd", "")
		}
	}
	if driven := r.runtime("orlop-cri"); driven != nil {
		if ct != nil {
			atMost("pod start by CRI beside containerd's, p50", driven.Start.at(.5), ct.Start.at(.5), .2, ms, "containerd", causes["pod"])
			atMost("pod start by CRI beside containerd's, CPU time", driven.StartCPU.each(), ct.StartCPU.each(), .2, ms, "containerd", causes["pod cpu"])
		}
		limit("pod start by CRI, p50", driven.Start.at(.5), 35, ms, causes["pod"])
		limit("pod start by CRI, CPU time", driven.StartCPU.each(), 35, ms, causes["pod cpu"])
		limit("stop and remove by CRI, p50", driven.Remove.at(.5), 45, ms, "")
		limit("ExecSync, p50", driven.Exec.at(.5), 6, ms, "")
		if r.Idle > 0 {
			add(target{what: fmt.Sprintf("pods per second by CRI, %d at once", atOnce), want: "≥ 45", orlop: fmt.Sprintf("%.1f", driven.PerSecond), ok: driven.PerSecond >= 45})
			limit("memory per idle pod by CRI, PSS", driven.perPodKiB(r.Idle), 128, kib, causes["idle"])
		}
	}
	if us != nil && r.Idle > 0 {
		limit("memory per idle pod, PSS", us.perPodKiB(r.Idle), 128, kib, causes["idle"])
		if r.Idle >= 200 {
			limit(fmt.Sprintf("daemon and keeper with %d idle pods, PSS", r.Idle), totalPSS(us.Full), 150<<10, kib, "")
		}
		limit("daemon without pods, PSS", us.Empty["orlop"].PSSKiB, 60<<10, kib, "")
		limit("keeper without pods, RSS", us.Empty["orlop-keeper"].RSSKiB, 15<<10, kib, "")
	}
	for _, b := range []struct {
		name string
		most float64
	}{{"orlop-init", 2.5 * 1024}, {"orlop-keeper", 10 * 1024}} {
		if n := r.BinaryBytes[b.name]; n > 0 {
			limit("size of "+b.name+", stripped", float64(n)/1024, b.most, kib, "")
		}
	}
	return list
}

// causes says in a sentence why a target is missed, should it be.
var causes = map[string]string{
	"container": "after a pause all is cold, and leaving the host's mounts waits for RCU; starts in a row, below, take less.",
	"oci":       "the start of Go's runtime and the program's are 2 of the 11 ms of CPU that are allowed, and after a pause all is cold (docs/design/oci.md).",
	"emulated":  "the machine is emulated, where the start of Go's runtime with its page faults weighs more than a program in C.",
	"pod":       "network namespace and veth pair take the kernel most of it.",
	"pod cpu":   "network namespace, veth pair and its addresses take the kernel most of it, and it is the same work for both.",
	"idle":      "the first pods bring what all share, some 5 MiB; and what a burst of starts took is given back after a few seconds only.",
}

func ms(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%.2f s", v/1000)
	}
	return fmt.Sprintf("%.1f ms", v)
}

func kib(v float64) string {
	if v >= 2048 || v <= -2048 {
		return fmt.Sprintf("%.1f MiB", v/1024)
	}
	return fmt.Sprintf("%.0f KiB", v)
}
