package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Every metric that is listed has values, with as many labels as it says, and those that
// are known from outside are right.
func TestCRIMetrics(t *testing.T) {
	n := newNode(t)
	c := n.cri()
	conf := c.sandbox()
	pod := c.run(t, conf)
	cc := criContainer("measured", "listen", "7000")
	cc.Linux.Resources = &v1.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20}
	id := c.start(t, pod, cc)
	created := c.create(t, pod, criContainer("created", "sleep"))

	list, err := c.ListMetricDescriptors(deadline(t), &v1.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var own, of map[string][]*v1.Metric
	read := func() error {
		own, of = make(map[string][]*v1.Metric), make(map[string][]*v1.Metric)
		r, err := c.ListPodSandboxMetrics(deadline(t), &v1.ListPodSandboxMetricsRequest{})
		if err != nil {
			return err
		}
		i := slices.IndexFunc(r.PodMetrics, func(m *v1.PodSandboxMetrics) bool { return m.PodSandboxId == pod })
		if i < 0 || len(r.PodMetrics[i].ContainerMetrics) != 1 || r.PodMetrics[i].ContainerMetrics[0].ContainerId != id {
			return fmt.Errorf("metrics of %s with one container that runs, without %s: %v", pod, created, r.PodMetrics)
		}
		for _, m := range r.PodMetrics[i].Metrics {
			own[m.Name] = append(own[m.Name], m)
		}
		for _, m := range r.PodMetrics[i].ContainerMetrics[0].Metrics {
			of[m.Name] = append(of[m.Name], m)
		}
		// It listens once it is up: then it has a socket.
		if s := of["container_sockets"]; len(s) != 1 || s[0].Value.Value == 0 {
			return fmt.Errorf("sockets: %v", s)
		}
		return nil
	}
	n.eventually(20*time.Second, read)

	// Those that a kernel may not count.
	optional := []string{"container_blkio_device_usage_total", "container_fs_reads_bytes_total", "container_fs_reads_total", "container_fs_writes_bytes_total", "container_fs_writes_total",
		"container_hugetlb_max_usage_bytes", "container_hugetlb_usage_bytes", "container_pressure_cpu_stalled_seconds_total", "container_pressure_cpu_waiting_seconds_total",
		"container_pressure_io_stalled_seconds_total", "container_pressure_io_waiting_seconds_total", "container_pressure_memory_stalled_seconds_total", "container_pressure_memory_waiting_seconds_total"}
	keys := make(map[string][]string)
	for _, d := range list.Descriptors {
		keys[d.Name] = d.LabelKeys
		values := slices.Concat(own[d.Name], of[d.Name])
		if len(values) == 0 && !slices.Contains(optional, d.Name) {
			t.Errorf("%s has no value", d.Name)
		}
		if d.Help == "" {
			t.Errorf("%s has no help", d.Name)
		}
		for _, v := range values {
			if len(v.LabelValues) != len(d.LabelKeys) || v.Timestamp == 0 {
				t.Errorf("%s: labels %v, want values of %v", d.Name, v, d.LabelKeys)
			}
		}
	}
	for _, m := range []map[string][]*v1.Metric{own, of} {
		for name := range m {
			if keys[name] == nil {
				t.Errorf("%s is not listed", name)
			}
		}
	}
	label := func(m *v1.Metric, key string) string { return m.LabelValues[slices.Index(keys[m.Name], key)] }
	for name, want := range map[string]uint64{
		"container_spec_cpu_period": 100000, "container_spec_cpu_quota": 50000, "container_spec_cpu_shares": 512, "container_spec_memory_limit_bytes": 64 << 20,
		"container_processes": 1, "container_oom_events_total": 0,
	} {
		m := of[name]
		if len(m) != 1 || m[0].Value.Value != want {
			t.Errorf("%s: %v, want %d", name, m, want)
			continue
		}
		if label(m[0], "container") != "measured" || label(m[0], "pod") != conf.Metadata.Name || label(m[0], "namespace") != "cri" || label(m[0], "name") != id {
			t.Errorf("%s: labels %v", name, m[0].LabelValues)
		}
	}
	for _, name := range []string{"container_memory_usage_bytes", "container_memory_working_set_bytes", "container_threads", "container_file_descriptors", "container_ulimits_soft",
		"container_fs_limit_bytes", "container_start_time_seconds", "container_last_seen"} {
		if m := of[name]; len(m) != 1 || m[0].Value.Value == 0 {
			t.Errorf("%s: %v", name, m)
		}
	}
	if m := own["container_network_receive_bytes_total"]; len(m) != 1 || label(m[0], "interface") != "eth0" || label(m[0], "container") != "" {
		t.Errorf("the pod's traffic: %v", m)
	}
	stream, err := c.StreamPodSandboxMetrics(deadline(t), &v1.StreamPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); err != nil || len(r.PodSandboxMetrics) != 1 || r.PodSandboxMetrics[0].PodSandboxId != pod {
		t.Errorf("streamed: %v %v", r, err)
	}
	c.remove(t, pod)
}
