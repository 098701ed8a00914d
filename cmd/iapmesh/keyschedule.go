package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// defaultGrace is how long a key that its schedule retired goes on to admit nodes.
const defaultGrace = 24 * time.Hour

// scheduleFlags are a schedule as the command line says it.
type scheduleFlags struct {
	every, grace time.Duration
	rotator      string
}

func (s *scheduleFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.DurationVar(&s.every, "rotate-every", 0, "let --rotator rotate the key this often, and in any case before it expires")
	f.DurationVar(&s.grace, "grace", defaultGrace, "with --rotate-every: how long each old key goes on to admit nodes")
	f.StringVar(&s.rotator, "rotator", "", "`NODE` that makes the successors, by id or name; its node.yaml says where their secrets go")
}

// check refuses a half of a schedule.
func (s *scheduleFlags) check(cmd *cobra.Command) error {
	if (s.every == 0) != (s.rotator == "") {
		return usagef("--rotate-every and --rotator go together")
	}
	if s.every == 0 && cmd.Flags().Changed("grace") {
		return usagef("--grace goes with --rotate-every and --rotator")
	}
	return nil
}

// into writes the schedule into a request to issue a key.
func (s *scheduleFlags) into(req *iapmeshv1.IssueKeyRequest) {
	if s.every != 0 {
		req.RotateEvery, req.RotateGrace, req.Rotator = durationpb.New(s.every), durationpb.New(s.grace), s.rotator
	}
}

func newKeyScheduleCommand(c *cli) *cobra.Command {
	var s scheduleFlags
	off := false
	cmd := &cobra.Command{
		Use: "schedule KEY", Short: "Let a node rotate a key by itself, or no longer",
		Long: `Let a node rotate a key by itself. Each time it is due, and in any case before the key expires, the node makes a successor, puts its
secret where its own node.yaml says (rotate:), and only then does the mesh turn to the successor; the old key admits nodes until --grace
ends. Successors inherit the schedule. The node that is named can make keys with all that this key grants: choose it accordingly.
--off takes the schedule away.`,
		Example: `  iapmesh key schedule us-east-proxies --rotate-every 168h --grace 24h --rotator px-1
  iapmesh key schedule us-east-proxies --off`,
		Args: exactArgs("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &iapmeshv1.ScheduleKeyRequest{Key: args[0]}
			switch {
			case off && (s.every != 0 || s.rotator != "" || cmd.Flags().Changed("grace")):
				return usagef("--off goes alone")
			case off:
			case s.every == 0 || s.rotator == "":
				return usagef("want --rotate-every and --rotator, or --off")
			default:
				req.RotateEvery, req.RotateGrace, req.Rotator = durationpb.New(s.every), durationpb.New(s.grace), s.rotator
			}
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewRotationServiceClient, iapmeshv1.RotationServiceClient.ScheduleKey, req)
			if err != nil {
				return err
			}
			return c.print(resp, func(t *table) {
				if off {
					t.line("key %s (%s) is no longer rotated by a node", resp.Key.Id, resp.Key.Name)
				} else {
					t.line("key %s (%s): %s", resp.Key.Id, resp.Key.Name, scheduleText(resp.Key))
					t.line("that node's node.yaml must say where the secrets go: rotate: [{key: %s, sink: …}]", resp.Key.Name)
				}
				receiptLines(t, resp.Receipt)
			})
		},
	}
	s.register(cmd)
	cmd.Flags().BoolVar(&off, "off", false, "take the schedule away")
	return cmd
}

// scheduleText says how a key is rotated; empty if it has no schedule.
func scheduleText(k *iapmeshv1.ProvisioningKey) string {
	if k.RotateEvery == nil {
		return ""
	}
	text := fmt.Sprintf("every %s by %s, grace %s", spanText(k.RotateEvery.AsDuration()), k.Rotator, spanText(k.RotateGrace.AsDuration()))
	if k.RotateRequested {
		text += "; asked to rotate now"
	}
	return text
}

// rotateByRotator asks a key's rotator for a successor, and waits for it.
func (c *cli) rotateByRotator(ctx context.Context, key string, wait bool, patience time.Duration) error {
	resp, err := unary(ctx, c, iapmeshv1.NewRotationServiceClient, iapmeshv1.RotationServiceClient.RequestKeyRotation, &iapmeshv1.RequestKeyRotationRequest{Key: key})
	if fault.Is(err, fault.Conflict) {
		err = hint(err, "iapmesh key schedule %s --rotate-every … --rotator NODE gives it a schedule.", key)
	}
	if err != nil {
		return unknownKey(err)
	}
	if wait {
		after, err := c.awaitKeyRotation(ctx, resp.Key, patience)
		if err != nil {
			return err
		}
		return c.print(after, func(t *table) { t.line("rotated %s; successor %s", resp.Key.Id, keyLine(after.Key)) })
	}
	return c.print(resp, func(t *table) {
		t.line("asked node %s to rotate key %s (%s); iapmesh key show %s shows the successor once it is there", resp.Key.Rotator, resp.Key.Id, resp.Key.Name, resp.Key.Id)
		receiptLines(t, resp.Receipt)
	})
}

// awaitKeyRotation shows how far a rotation is, until the successor is active.
func (c *cli) awaitKeyRotation(ctx context.Context, key *iapmeshv1.ProvisioningKey, patience time.Duration) (*iapmeshv1.GetKeyResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	shown := ""
	for {
		line, successor, err := c.keyRotation(ctx, key.Id)
		switch {
		case err != nil && ctx.Err() == nil && !fault.Is(err, fault.Unavailable): // whoever waits for minutes waits for the next leader, too
			return nil, err
		case err == nil && successor != "":
			return c.getKey(ctx, successor)
		case err == nil && line != shown:
			shown = line
			fmt.Fprintln(c.stderr, line)
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, ctx.Err()
			}
			return nil, hint(fault.New(fault.Unavailable, "wait for the rotation of key %s: not within %v: %s", key.Id, patience, shown),
				"The rotation goes on without you, and the key serves meanwhile; the log of node %s says what it waits for.", key.Rotator)
		case <-ticker.C:
		}
	}
}

// keyRotation says how far a key's rotation is; its successor, once it is active.
func (c *cli) keyRotation(ctx context.Context, id string) (line, successor string, err error) {
	resp, err := unary(ctx, c, iapmeshv1.NewKeyServiceClient, iapmeshv1.KeyServiceClient.ListKeys, &iapmeshv1.ListKeysRequest{})
	if err != nil {
		return "", "", err
	}
	line = "asked the rotator: it has proposed no successor yet"
	for _, k := range resp.Keys {
		switch {
		case k.Id == id && k.Successor != "":
			return "", k.Successor, nil
		case k.Id == id && k.State == iapmeshv1.KeyState_KEY_STATE_REVOKED, k.Id == id && k.RotateEvery == nil:
			return "", "", fault.New(fault.Conflict, "key %s will not be rotated: it was revoked, or has no schedule any more", id)
		case k.Predecessor == id && k.ProposedBy != "" && k.State == iapmeshv1.KeyState_KEY_STATE_PENDING:
			line = fmt.Sprintf("successor %s is proposed: its secret is on the way to where it is kept", k.Id)
		}
	}
	return line, "", nil
}
