package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func newKeySuspendCommand(c *cli) *cobra.Command {
	req := &iapmeshv1.SuspendKeyRequest{}
	wait := waitNot
	cmd := &cobra.Command{
		Use: "suspend KEY", Short: "Let nobody join by a key until it is resumed",
		Long: `Let nobody join by an active key until it is resumed. Nodes that have joined by it go on. Its time runs on meanwhile: one whose
time is over when it is resumed has expired.`,
		Example: "  iapmesh key suspend us-east-proxies --reason \"image under investigation\"",
		Args:    exactArgs("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Key = args[0]
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewKeyServiceClient, iapmeshv1.KeyServiceClient.SuspendKey, req)
			if err != nil {
				return unknownKey(err)
			}
			if resp.Receipt, err = c.awaitReceipt(cmd.Context(), resp.Receipt, wait); err != nil {
				return err
			}
			return c.print(resp, func(t *table) {
				t.line("suspended %s", keyLine(resp.Key))
				receiptLines(t, resp.Receipt)
			})
		},
	}
	cmd.Flags().StringVar(&req.Reason, "reason", "", "`TEXT` for the record")
	wait.flag(cmd, "wait until every live node has it")
	return cmd
}

func newKeyResumeCommand(c *cli) *cobra.Command {
	wait := waitNot
	cmd := &cobra.Command{
		Use: "resume KEY", Short: "Let nodes join by a suspended key again", Example: "  iapmesh key resume us-east-proxies",
		Args: exactArgs("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewKeyServiceClient, iapmeshv1.KeyServiceClient.ResumeKey, &iapmeshv1.ResumeKeyRequest{Key: args[0]})
			if err != nil {
				return unknownKey(err)
			}
			if resp.Receipt, err = c.awaitReceipt(cmd.Context(), resp.Receipt, wait); err != nil {
				return err
			}
			return c.print(resp, func(t *table) {
				t.line("resumed %s", keyLine(resp.Key))
				if resp.Key.State != iapmeshv1.KeyState_KEY_STATE_ACTIVE {
					t.line("it admits nobody: it is %s meanwhile", enumText(resp.Key.State, "KEY_STATE_"))
				}
				receiptLines(t, resp.Receipt)
			})
		},
	}
	wait.flag(cmd, "wait until every live node has it")
	return cmd
}

func newKeyApproveCommand(c *cli) *cobra.Command {
	wait := waitNot
	cmd := &cobra.Command{
		Use: "approve KEY", Short: "Approve a key that awaits a second administrator",
		Long: `Approve a key that another administrator has asked for: until then it admits nobody. Look at it first, with iapmesh key show: what
it grants, where, and for how long; then name it by its id, which stands for what you have looked at as a name does not. A successor
takes over with its approval, and its predecessor retires after the grace that was asked for.

Keys that grant control need it where Settings say control_key_approval, others where they were issued with --needs-approval.`,
		Example: "  iapmesh key show control-nodes --profile bob\n  iapmesh key approve kzdvvj2umnduyauf --profile bob",
		Args:    exactArgs("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			resp, err := unary(cmd.Context(), c, iapmeshv1.NewKeyServiceClient, iapmeshv1.KeyServiceClient.ApproveKey, &iapmeshv1.ApproveKeyRequest{Key: args[0]})
			if fault.Is(err, fault.Denied) {
				return hint(err, "Let one of the others do it: iapmesh admin list.")
			}
			if err != nil {
				return unknownKey(err)
			}
			if resp.Receipt, err = c.awaitReceipt(cmd.Context(), resp.Receipt, wait); err != nil {
				return err
			}
			return c.print(resp, func(t *table) {
				t.line("approved %s", keyLine(resp.Key))
				if resp.Predecessor != nil {
					t.line("%s", retiringLine(resp.Predecessor))
				}
				receiptLines(t, resp.Receipt)
			})
		},
	}
	wait.flag(cmd, "wait until every live node has it")
	return cmd
}

// unknownKey says where the keys are to be found, where none was.
func unknownKey(err error) error {
	if fault.Is(err, fault.NotFound) {
		return hint(err, "iapmesh key list shows them all.")
	}
	return err
}

// retiringLine says of a key that has a successor for how long it still admits nodes.
func retiringLine(k *iapmeshv1.ProvisioningKey) string {
	if k.State == iapmeshv1.KeyState_KEY_STATE_RETIRED {
		return k.Id + " is retired; it admits nobody any more"
	}
	return k.Id + " is retiring; it admits nodes until " + k.GraceUntil.AsTime().Format(time.RFC3339)
}

// awaitsApproval is keyring's Key.AwaitsApproval, of a message.
func awaitsApproval(k *iapmeshv1.ProvisioningKey) bool {
	return k.State == iapmeshv1.KeyState_KEY_STATE_PENDING && k.NeedsApproval && k.ApprovedAt == nil
}
