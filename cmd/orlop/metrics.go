package main

import (
	"context"

	"github.com/orlop-io/orlop/internal/server/web"
)

// sources are what /metrics shows of the domains.
func (h *host) sources() []web.Source {
	type put = func(float64, ...string)
	return []web.Source{
		{Name: "pods", Help: "Pods by phase.", Labels: []string{"phase"}, Read: func(ctx context.Context, put put) error {
			list, err := h.pods.List(ctx)
			n := map[string]int{"Pending": 0, "Running": 0, "Succeeded": 0, "Failed": 0}
			for _, p := range list {
				n[string(p.Phase)]++
			}
			for phase, count := range n {
				put(float64(count), phase)
			}
			return err
		}},
		{Name: "containers", Help: "Containers by state.", Labels: []string{"state"}, Read: func(ctx context.Context, put put) error {
			list, err := h.pods.List(ctx)
			n := map[string]int{"waiting": 0, "running": 0, "terminated": 0}
			for _, p := range list {
				for _, c := range p.Containers {
					n[string(c.State)]++
				}
			}
			for state, count := range n {
				put(float64(count), state)
			}
			return err
		}},
		{Name: "container_restarts_total", Help: "Restarts of the containers that exist.", Counter: true, Labels: []string{"namespace", "pod", "container"},
			Read: func(ctx context.Context, put put) error {
				list, err := h.pods.List(ctx)
				for _, p := range list {
					for _, c := range p.Containers {
						put(float64(c.Restarts), p.Spec.Namespace, p.Spec.Name, c.Name)
					}
				}
				return err
			}},
		{Name: "images", Help: "Images in the store.", Read: func(ctx context.Context, put put) error {
			list, err := h.images.List(ctx)
			put(float64(len(list)))
			return err
		}},
		{Name: "images_collected_total", Help: "Images removed because the disk was full.", Counter: true, Read: func(ctx context.Context, put put) error {
			put(float64(h.images.Collected().Images))
			return nil
		}},
		{Name: "images_collected_bytes_total", Help: "Bytes freed by removing images because the disk was full.", Counter: true, Read: func(ctx context.Context, put put) error {
			put(float64(h.images.Collected().FreedBytes))
			return nil
		}},
		{Name: "network_endpoints", Help: "Pods with an address.", Read: func(ctx context.Context, put put) error {
			put(float64(len(h.network.List())))
			return nil
		}},
		{Name: "volume_pool_bytes", Help: "The pool of volumes: its capacity, what is used, free, promised and can be promised still.", Labels: []string{"what"},
			Read: func(ctx context.Context, put put) error {
				s, err := h.volumes.Stats(ctx)
				if err != nil {
					return err
				}
				put(float64(s.CapacityBytes), "capacity")
				put(float64(s.UsedBytes), "used")
				put(float64(s.FreeBytes), "free")
				put(float64(s.PromisedBytes), "promised")
				put(float64(s.PromisableBytes), "promisable")
				return nil
			}},
		{Name: "volume_disk_bytes", Help: "The disk below the pool of volumes: what is free, and the reserve that new volumes stop at.", Labels: []string{"what"},
			Read: func(ctx context.Context, put put) error {
				s, err := h.volumes.Stats(ctx)
				if err != nil {
					return err
				}
				put(float64(s.HostFreeBytes), "free")
				put(float64(s.ReserveBytes), "reserve")
				return nil
			}},
		{Name: "volumes", Help: "Claims, those that a pod uses, and scratch spaces of pods.", Labels: []string{"what"},
			Read: func(ctx context.Context, put put) error {
				s, err := h.volumes.Stats(ctx)
				if err != nil {
					return err
				}
				put(float64(s.Claims), "claims")
				put(float64(s.Published), "used")
				put(float64(s.Scratch), "scratch")
				return nil
			}},
		{Name: "trace_spans_total", Help: "Spans of traces that were ended, sent, and not taken by the collector.", Counter: true, Labels: []string{"what"},
			Read: func(ctx context.Context, put put) error {
				if h.tracer == nil {
					return nil
				}
				s := h.tracer.Stats()
				put(float64(s.Ended), "ended")
				put(float64(s.Sent), "sent")
				put(float64(s.Failed), "failed")
				return nil
			}},
	}
}
