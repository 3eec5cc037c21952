package cri

import (
	"testing"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Of every method of the protocol it is decided whether it begins a trace: a new one has to
// be put on one of the lists.
func TestActs(t *testing.T) {
	looks := map[string]bool{}
	for _, name := range []string{
		"Version", "Status", "RuntimeConfig", "PodSandboxStatus", "ListPodSandbox", "StreamPodSandboxes", "ContainerStatus", "ListContainers", "StreamContainers", "ExecSync",
		"ContainerStats", "ListContainerStats", "StreamContainerStats", "PodSandboxStats", "ListPodSandboxStats", "StreamPodSandboxStats",
		"GetContainerEvents", "ListMetricDescriptors", "ListPodSandboxMetrics", "StreamPodSandboxMetrics",
		"ListImages", "StreamImages", "ImageStatus", "ImageFsInfo",
	} {
		looks[name] = true
	}
	known := map[string]bool{}
	check := func(name string) {
		known[name] = true
		if acts[name] == looks[name] {
			t.Errorf("%s: acts %v, looks %v", name, acts[name], looks[name])
		}
	}
	for _, m := range v1.RuntimeService_ServiceDesc.Methods {
		check(m.MethodName)
	}
	for _, m := range v1.RuntimeService_ServiceDesc.Streams {
		check(m.StreamName)
	}
	for _, m := range v1.ImageService_ServiceDesc.Methods {
		check(m.MethodName)
	}
	for _, m := range v1.ImageService_ServiceDesc.Streams {
		check(m.StreamName)
	}
	for _, list := range []map[string]bool{acts, looks, endless} {
		for name := range list {
			if !known[name] {
				t.Errorf("the protocol has no method %s", name)
			}
		}
	}
}
