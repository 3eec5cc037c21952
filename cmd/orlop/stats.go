package main

import (
	"fmt"
	"time"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/spf13/cobra"
)

func (a *app) statsCommand() *cobra.Command {
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "stats [POD]",
		Short: "Show what pods use",
		Long: `Shows processor, memory, network and disk use of running pods. Processor use is measured over an interval; 100%
is one processor. -o wide shows each container. json and yaml are the counters themselves, of one moment.`,
		Example: `  orlop stats
  orlop stats notes -o wide --interval 5s`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completePods,
	}
	namespace := a.allNamespaces(cmd)
	format := outputFlag(cmd, listFormats...)
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "what processor use is measured over")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req := &orlopv1.StatsRequest{Namespace: namespace()}
		if len(args) == 1 {
			req.Pod = args[0]
		}
		ctx := cmd.Context()
		first, err := call(ctx, a.client().pods.Stats, req)
		if err != nil {
			return err
		}
		if *format == "json" || *format == "yaml" {
			return printArray(cmd.OutOrStdout(), *format, first.Pods)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(interval):
		}
		second, err := call(ctx, a.client().pods.Stats, req)
		if err != nil {
			return err
		}
		wide := *format == "wide"
		return printTable(cmd.OutOrStdout(), wide, statRows(first.Pods, second.Pods, wide), statColumns(namespace() == ""))
	}
	return cmd
}

// statRow is a pod, or a container of one.
type statRow struct {
	pod           *orlopv1.PodStats
	name          string
	container     bool
	before, after *orlopv1.Usage
}

// statRows joins two samples. What is in the second alone has no processor use yet.
func statRows(first, second []*orlopv1.PodStats, containers bool) []statRow {
	before := map[string]*orlopv1.Usage{}
	key := func(p *orlopv1.PodStats, container string) string { return p.Namespace + "/" + p.Pod + "/" + container }
	for _, p := range first {
		before[key(p, "")] = p.Total
		for _, c := range p.Containers {
			before[key(p, c.Name)] = c.Usage
		}
	}
	var rows []statRow
	for _, p := range second {
		rows = append(rows, statRow{pod: p, name: p.Pod, before: before[key(p, "")], after: p.Total})
		if !containers {
			continue
		}
		for _, c := range p.Containers {
			rows = append(rows, statRow{pod: p, name: p.Pod + "/" + c.Name, container: true, before: before[key(p, c.Name)], after: c.Usage})
		}
	}
	return rows
}

func statColumns(namespace bool) []column[statRow] {
	network := func(n func(*orlopv1.PodStats) uint64) func(statRow) string {
		return func(r statRow) string {
			if r.container { // it is the pod's
				return ""
			}
			return size(n(r.pod))
		}
	}
	return []column[statRow]{
		{title: "NAMESPACE", wide: !namespace, cell: func(r statRow) string { return r.pod.Namespace }},
		{title: "NAME", cell: func(r statRow) string { return r.name }},
		{title: "CPU", cell: cpuPercent},
		{title: "MEMORY", cell: func(r statRow) string { return size(r.after.GetMemoryBytes()) }},
		{title: "LIMIT", cell: func(r statRow) string {
			if r.after.GetMemoryLimitBytes() == 0 {
				return ""
			}
			return size(r.after.GetMemoryLimitBytes())
		}},
		{title: "PROCESSES", cell: func(r statRow) string { return fmt.Sprint(r.after.GetProcesses()) }},
		{title: "RECEIVED", cell: network((*orlopv1.PodStats).GetNetworkReceiveBytes)},
		{title: "SENT", cell: network((*orlopv1.PodStats).GetNetworkTransmitBytes)},
		{title: "READ", cell: func(r statRow) string { return size(r.after.GetReadBytes()) }},
		{title: "WRITTEN", cell: func(r statRow) string { return size(r.after.GetWriteBytes()) }},
		{title: "WITH CACHE", wide: true, cell: func(r statRow) string { return size(r.after.GetMemoryUsageBytes()) }},
	}
}

// cpuPercent is the use between the samples; a restart between them makes it unknown.
func cpuPercent(r statRow) string {
	if r.before == nil || r.after == nil || r.after.CpuNanoseconds < r.before.CpuNanoseconds {
		return ""
	}
	d := r.after.At.AsTime().Sub(r.before.At.AsTime())
	if d <= 0 {
		return ""
	}
	return fmt.Sprintf("%.1f%%", 100*float64(r.after.CpuNanoseconds-r.before.CpuNanoseconds)/float64(d))
}
