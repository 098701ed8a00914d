package mesh

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/iapmesh/iapmesh/internal/dev"
	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/profile"
	"github.com/iapmesh/iapmesh/node/resource"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

const (
	pollEvery = 40 * time.Millisecond
	tryWithin = 5 * time.Second
)

// bring waits for the nodes, configures the mesh if it is new, and returns once every region serves.
func (m *Mesh) bring(ctx context.Context) error {
	if err := m.poll(ctx, "the first node listens", m.listens); err != nil { // gRPC would back off for longer
		return err
	}
	if err := m.poll(ctx, "all nodes join", m.everybodyReports); err != nil {
		return err
	}
	if err := m.configure(ctx); err != nil {
		return err
	}
	if err := m.keepBootstrapKey(ctx); err != nil {
		return err
	}
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return m.poll(ctx, "three control nodes vote", m.everybodyVotes) })
	for i, region := range regions {
		all.Go(func() error {
			if err := m.poll(ctx, region+" is ready", func(ctx context.Context) error { return m.nodeReady(ctx, i) }); err != nil {
				return err
			}
			return m.poll(ctx, region+" leads to the sign-in form", func(ctx context.Context) error { return m.signInForm(ctx, i) })
		})
	}
	return all.Wait()
}

// poll tries until it works, a node has died, or the time is up; then the last try says what was missing.
func (m *Mesh) poll(ctx context.Context, what string, try func(context.Context) error) error {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		if err := m.died(); err != nil {
			return err
		}
		once, cancel := context.WithTimeout(ctx, tryWithin)
		err := try(once)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, err)
		case <-ticker.C:
		}
	}
}

func (m *Mesh) listens(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", local(m.ports.api(0)))
	if err != nil {
		return err
	}
	return conn.Close()
}

func (m *Mesh) status(ctx context.Context) (*iapmeshv1.Status, error) {
	var status *iapmeshv1.Status
	err := m.api.Call(ctx, func(ctx context.Context, c grpc.ClientConnInterface, opts ...grpc.CallOption) error {
		r, err := iapmeshv1.NewClusterServiceClient(c).GetStatus(ctx, &iapmeshv1.GetStatusRequest{}, opts...)
		status = r.GetStatus()
		return err
	})
	return status, err
}

// everybodyReports: each region's node is enrolled and reports to the leader.
func (m *Mesh) everybodyReports(ctx context.Context) error {
	status, err := m.status(ctx)
	if err != nil {
		return err
	}
	for i, region := range regions {
		n := m.nodeOf(status, i)
		if n == nil {
			return fault.New(fault.Unavailable, "the node of %s has not joined", region)
		}
		if !n.Live || n.Node.State != iapmeshv1.NodeState_NODE_STATE_ACTIVE {
			return fault.New(fault.Unavailable, "the node of %s is %s and live: %v", region, n.Node.State, n.Live)
		}
	}
	return nil
}

func (m *Mesh) everybodyVotes(ctx context.Context) error {
	status, err := m.status(ctx)
	if err != nil {
		return err
	}
	for i, region := range regions {
		if n := m.nodeOf(status, i); n == nil || !n.Voter {
			return fault.New(fault.Unavailable, "the node of %s does not vote", region)
		}
	}
	return nil
}

// nodeOf finds the node that this program started for a region; others may have been added.
func (m *Mesh) nodeOf(s *iapmeshv1.Status, i int) *iapmeshv1.NodeStatus {
	for _, n := range s.GetNodes() {
		if n.GetNode().GetAddresses().GetMesh() == local(m.ports.api(i)) {
			return n
		}
	}
	return nil
}

// configure applies mesh.yaml to a mesh that has no configuration, and waits until every node serves it.
func (m *Mesh) configure(ctx context.Context) error {
	text, err := m.writeMeshFile()
	if err != nil {
		return err
	}
	var there bool
	err = m.poll(ctx, "the configuration can be read", func(ctx context.Context) error {
		return m.api.Call(ctx, func(ctx context.Context, c grpc.ClientConnInterface, opts ...grpc.CallOption) error {
			r, err := iapmeshv1.NewConfigServiceClient(c).GetResources(ctx, &iapmeshv1.GetResourcesRequest{}, opts...)
			there = len(r.GetResources()) > 0
			return err
		})
	})
	if err != nil || there {
		return err
	}
	docs, err := resource.Parse(m.path(meshFile), text)
	if err != nil {
		return err
	}
	apply := &iapmeshv1.ApplyRequest{}
	for _, d := range docs {
		ref := d.Ref()
		apply.Resources = append(apply.Resources, &iapmeshv1.Resource{Kind: ref.Kind, Name: ref.Name, Spec: d.JSON, Source: d.Source})
	}
	var at *iapmeshv1.Revision
	err = m.write(ctx, "set the provider's client secret", func(ctx context.Context, c grpc.ClientConnInterface, opts ...grpc.CallOption) error {
		_, err := iapmeshv1.NewConfigServiceClient(c).SetSecret(ctx, &iapmeshv1.SetSecretRequest{Name: secretName, Value: []byte(m.kept.ClientSecret)}, opts...)
		return err
	})
	if err != nil {
		return err
	}
	err = m.write(ctx, "apply mesh.yaml", func(ctx context.Context, c grpc.ClientConnInterface, opts ...grpc.CallOption) error {
		r, err := iapmeshv1.NewConfigServiceClient(c).Apply(ctx, apply, opts...)
		at = r.GetReceipt().GetRevision()
		return err
	})
	if err != nil {
		return err
	}
	return m.poll(ctx, "every region serves mesh.yaml", func(ctx context.Context) error { return m.received(ctx, at) })
}

// write repeats a call while no leader answers, or somebody else wrote at the same time; both calls are idempotent. Any other
// answer is final.
func (m *Mesh) write(ctx context.Context, what string, call profile.Func) error {
	var final error
	err := m.poll(ctx, what, func(ctx context.Context) error {
		err := m.api.Call(ctx, call)
		if fault.Is(err, fault.Unavailable) || fault.Is(err, fault.Conflict) {
			return err
		}
		final = err
		return nil
	})
	if err == nil {
		err = final
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// received waits for the receipt of a change: every live node serves it.
func (m *Mesh) received(ctx context.Context, at *iapmeshv1.Revision) error {
	return m.api.Call(ctx, func(ctx context.Context, c grpc.ClientConnInterface, opts ...grpc.CallOption) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := iapmeshv1.NewClusterServiceClient(c).WatchReceipt(ctx, &iapmeshv1.WatchReceiptRequest{Revision: at}, opts...)
		if err != nil {
			return err
		}
		for {
			r, err := stream.Recv()
			if err != nil {
				return err
			}
			if r.GetReceipt().GetComplete() {
				return nil
			}
		}
	})
}

// nodeReady asks a node's ops listener.
func (m *Mesh) nodeReady(ctx context.Context, i int) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+local(m.ports.ops(i))+"/readyz", nil)
	if err != nil {
		return err
	}
	answer, err := m.plain.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	why, err := io.ReadAll(io.LimitReader(answer.Body, 4096))
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fault.New(fault.Unavailable, "/readyz: %s", strings.TrimSpace(string(why)))
	}
	return nil
}

// signInForm visits echo as a browser without a session would, and must end at the provider's form.
func (m *Mesh) signInForm(ctx context.Context, i int) error {
	browser := dev.NewBrowser(dev.Config{CA: m.authority.Pool()})
	defer browser.Client.CloseIdleConnections()
	page, err := browser.Get(ctx, fmt.Sprintf("https://%s:%d/", EchoHost, m.ports.proxy(i)))
	if err != nil {
		return err
	}
	defer page.Body.Close()
	if page.StatusCode != http.StatusOK || !strings.HasPrefix(page.Request.URL.String(), m.idpURL()) {
		return fault.New(fault.Unavailable, "a visitor arrives at %s with status %d", page.Request.URL.Host, page.StatusCode)
	}
	return nil
}
