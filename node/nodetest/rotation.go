package nodetest

import (
	"context"
	"io"
	"net/http"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/iapmesh/iapmesh/node"
	"github.com/iapmesh/iapmesh/node/sink"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// Rotates starts the node anew, with a node.yaml that has it rotate a key into a file.
func (r *Region) Rotates(key, file string) {
	r.Stop()
	r.config.Rotate = append(r.config.Rotate, node.Rotate{Key: key, Sink: sink.Config{File: file}})
	r.Start()
	r.AwaitReady()
}

// IssueScheduled issues a key for any number of proxies that lives for ttl and that the region's node rotates.
func (m *Mesh) IssueScheduled(name string, public []byte, ttl time.Duration, rotator *Region) *iapmeshv1.ProvisioningKey {
	m.t.Helper()
	return m.Issue(name, public, func(r *iapmeshv1.IssueKeyRequest) {
		r.Ttl, r.RotateEvery, r.RotateGrace, r.Rotator = durationpb.New(ttl), durationpb.New(time.Hour), durationpb.New(time.Minute), rotator.config.Name
	})
}

// Keys lists the provisioning keys of a name, or all if it is empty, newest first.
func (m *Mesh) Keys(name string) []*iapmeshv1.ProvisioningKey {
	m.t.Helper()
	var keys []*iapmeshv1.ProvisioningKey
	m.call("list keys", func(ctx context.Context, conn grpc.ClientConnInterface, o ...grpc.CallOption) error {
		resp, err := iapmeshv1.NewKeyServiceClient(conn).ListKeys(ctx, &iapmeshv1.ListKeysRequest{}, o...)
		keys = resp.GetKeys()
		return err
	})
	return slices.DeleteFunc(keys, func(k *iapmeshv1.ProvisioningKey) bool { return name != "" && k.Name != name })
}

// StartNodeByKey is AddNodeWithKey that does not wait until the node has joined.
func (m *Mesh) StartNodeByKey(keyFile, name string, roles ...string) *Region {
	return m.startNode(m.regions[m.order[0]], keyFile, name, roles)
}

// Metrics are what the node tells of itself, once it answers.
func (r *Region) Metrics() string {
	r.mesh.t.Helper()
	var data []byte
	r.mesh.Eventually(r.Name+" tells its metrics", func() bool {
		resp, err := http.Get("http://" + r.config.Listen.Ops + "/metrics")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		data, err = io.ReadAll(resp.Body)
		return err == nil && resp.StatusCode == http.StatusOK
	})
	return string(data)
}
