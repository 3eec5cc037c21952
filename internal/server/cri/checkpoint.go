package cri

import (
	"context"
	"encoding/json"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/pod"
)

// CheckpointContainer implements the service.
func (s *Server) CheckpointContainer(ctx context.Context, r *v1.CheckpointContainerRequest) (*v1.CheckpointContainerResponse, error) {
	if r.Timeout < 0 || r.Timeout > int64(maxCheckpoint/time.Second) {
		return nil, errs.New(errs.Invalid, "CheckpointContainer: timeout %d: give seconds, at most %d, or 0 for none", r.Timeout, maxCheckpoint/time.Second)
	}
	st, err := s.ContainerStatus(ctx, &v1.ContainerStatusRequest{ContainerId: r.ContainerId})
	if err != nil {
		return nil, err
	}
	status, err := json.Marshal(st.Status)
	if err != nil {
		return nil, err
	}
	req := pod.CheckpointRequest{Location: r.Location, Timeout: time.Duration(r.Timeout) * time.Second, Status: status}
	if err := s.o.Pods.CheckpointContainer(ctx, pod.ContainerID(r.ContainerId), req); err != nil {
		return nil, err
	}
	return &v1.CheckpointContainerResponse{}, nil
}

// maxCheckpoint is the longest time limit that means anything.
const maxCheckpoint = 24 * time.Hour
