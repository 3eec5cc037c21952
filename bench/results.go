package main

import "time"

// results is what a run found. It travels between the stages as JSON.
type results struct {
	At          time.Time
	Machine     string
	Rounds      int
	Starts      int // per round
	Pods        int // per round
	Idle        int
	Parallel    int
	Soak        int
	PullFiles   int
	PullMiB     int
	Containers  []*containerResult
	Runtimes    []*podResult
	BinaryBytes map[string]int64 // of this tree
	V2          *results         // of the cgroup-v2 machine
}

// containerResult is what was measured of one starter's containers.
type containerResult struct {
	Name, Version string
	Run           sample // ms, /bin/true to its end and away
	RunCPU        spent
	Exec          sample // ms
	ExecCPU       spent
	ParallelMs    float64          // that many at once, to the end of the last
	Failures      []string         // of those
	Before, After map[string]usage // memory around the soak
	SoakMs        float64          // per container
	KernelKiB     float64          // growth of the kernel's unreclaimable memory over the soak
}

// podResult is what was measured of one runtime's pods.
type podResult struct {
	Name, Version string
	Start         sample // ms until the container runs
	StartCPU      spent  // all processes of runtime and pod
	Remove        sample // ms
	RemoveCPU     spent
	Exec          sample // ms, of runtimes that have it
	ExecCPU       spent
	PerSecond     float64          // 8 at once
	Empty, Full   map[string]usage // memory of the runtime's own processes with no pod, and with the idle ones
	Pull          sample           // ms
	PullCPU       spent
}

// perPodKiB is what the runtime's own processes grow by for an idle pod.
func (p *podResult) perPodKiB(pods int) float64 {
	return (totalPSS(p.Full) - totalPSS(p.Empty)) / float64(pods)
}

func (r *results) container(name string) *containerResult {
	for _, c := range r.Containers {
		if c.Name == name {
			return c
		}
	}
	return nil
}

func (r *results) runtime(name string) *podResult {
	for _, p := range r.Runtimes {
		if p.Name == name {
			return p
		}
	}
	return nil
}
