package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Devices of the Container Device Interface, by the request's field and by annotation.
func TestCRIDevicesByName(t *testing.T) {
	n := newNode(t)
	dir := t.TempDir()
	n.write(dir+"/vendor.json", `{"cdiVersion": "0.6.0", "kind": "example.test/gadget", "devices": [
		{"name": "one", "containerEdits": {"deviceNodes": [{"path": "/dev/gadget", "hostPath": "/dev/null"}], "env": ["GADGET=one"]}},
		{"name": "two", "containerEdits": {"env": ["OTHER=two"], "mounts": [{"hostPath": "`+dir+`", "containerPath": "/gadget", "options": ["ro", "rbind"]}]}}]}`)
	n.configure("pod: {cdiDirs: [" + dir + "]}\n")
	c := n.cri()
	pod := c.run(t, c.sandbox())
	cc := criContainer("devices", "look", "env", "write:/dev/gadget", "stat:/gadget/vendor.json")
	cc.CDIDevices = []*v1.CDIDevice{{Name: "example.test/gadget=one"}}
	cc.Annotations = map[string]string{"cdi.k8s.io/plugin": "example.test/gadget=one,example.test/gadget=two"}
	st := c.ended(t, c.start(t, pod, cc))
	n.eventually(10*time.Second, func() error {
		raw, err := os.ReadFile(st.LogPath)
		if err != nil || !strings.Contains(string(raw), "end of look") {
			return os.ErrNotExist
		}
		for _, want := range []string{"GADGET=one", "OTHER=two", "wrote /dev/gadget", "found /gadget/vendor.json"} {
			if !strings.Contains(string(raw), want) {
				t.Errorf("%q is not in\n%s", want, raw)
			}
		}
		return nil
	})
	bad := criContainer("unknown")
	bad.CDIDevices = []*v1.CDIDevice{{Name: "example.test/gadget=three"}}
	_, err := c.CreateContainer(deadline(t), &v1.CreateContainerRequest{PodSandboxId: pod, Config: bad})
	wantCode(t, err, codes.InvalidArgument, "example.test/gadget=three is not in "+dir)
	c.remove(t, pod)
}
