"""The NPUs that LiteRT's compiler plugins know, and which operators each plugin takes.

A plugin chooses operators first (partition) and hands them to the vendor's SDK (compile). The rules here are
those of the first step in ai-edge-litert 2.3.0, for an SDK that takes everything it is asked for: what an SDK
refuses itself nobody knows without it.
"""

from __future__ import annotations

from dataclasses import dataclass

from delegates.graph import Node, Subgraph
from delegates.npu_rules import RULES, unreadable, whole
from delegates.rules import Check, Refusal

_ASKED = "the plugin of ai-edge-litert 2.3.0 itself, asked operator by operator"


@dataclass(frozen=True)
class Vendor:
    name: str
    maker: str  # as LiteRT calls it
    plugin: str  # compiles ahead of time; below the package, in the wheel for x86-64 Linux alone
    dispatch: str  # runs what was compiled; "" where the wheel has none and it comes with the Android app
    sdk: str  # package that compiling needs
    sdk_module: str
    sdk_source: str  # where installing the package downloads the libraries from; "" where it has them itself
    socs: tuple[str, ...]  # as the plugin spells them
    precision: str  # of float graphs
    limits: tuple[str, ...]
    source: str  # of the rules; "" where there are none
    backends: tuple[str, ...] = ()  # that the plugin compiles for beside its NPUs

    @property
    def targets(self) -> tuple[str, ...]:
        return (*self.socs, *self.backends)


_QUALCOMM = """
    AIC100 IPQ5404 IPQ5424 IPQ6018 IPQ6028 IPQ9574 QCM2290 QCM4290 QCM4325 QCM4490 QCM6125 QCM6490 QCM6690
    QCS2290 QCS403 QCS405 QCS410 QCS610 QCS6125 QCS7230 QCS8275 QCS8300 QCS8550 QCS8625 QCS9075 QCS9100
    QRB4210 QRB5165 SA525M SA7255 SA8195 SA8255 SA8295 SA8540 SA8610 SA8620 SA8620P SA8630 SA8650 SA8775
    SA8797 SAR1130P SAR2130P SAR2230P SC7280X SC8280X SC8380XP SC8480XP SDM625 SDM630 SDM632 SDM636 SDM652
    SDM660 SDM670 SDM710 SDM820 SDM821 SDM835 SDM845 SDM855 SDM865 SM4250 SM4350 SM4375 SM4450 SM4635 SM6115
    SM6125 SM6150 SM6225 SM6250 SM6350 SM6375 SM6450 SM6450Q SM6475 SM6650 SM7150 SM7225 SM7250 SM7315 SM7325
    SM7350 SM7435 SM7450 SM7475 SM7550 SM7635 SM7675 SM7750 SM8325 SM8350 SM8350P SM8450 SM8475 SM8550 SM8635
    SM8650 SM8735 SM8750 SM8845 SM8845P SM8850 SSG2115P SSG2125P STP6225P SW6100 SXR1230P SXR2230P SXR2330P
"""
_MEDIATEK = """
    mt6853 mt6877 mt6878 mt6879 mt6886 mt6893 mt6895 mt6897 mt6983 mt6985 mt6989 mt6991 mt6993 mt8171 mt8188
    mt8189
"""

ON_CPU = "CPU"  # OpenVINO's other backend, for boards without an NPU

VENDORS = {
    vendor.name: vendor
    for vendor in (
        Vendor(
            name="qualcomm",
            maker="Qualcomm",
            plugin="vendors/qualcomm/compiler/libLiteRtCompilerPlugin_Qualcomm.so",
            dispatch="",
            sdk="ai-edge-litert-sdk-qualcomm",
            sdk_module="ai_edge_litert_sdk_qualcomm",
            sdk_source="softwarecenter.qualcomm.com",
            socs=tuple(_QUALCOMM.split()),
            precision="float16 (the plugin casts float32 with 8-bit weights to it)",
            limits=(
                "one tensor of a type that QNN lacks, or quantised by blocks, and the whole graph is refused",
                "weights of 4 bits need 8- or 16-bit activations",
                "shapes, axes and paddings must be constants of int32",
            ),
            source=_ASKED,
        ),
        Vendor(
            name="mediatek",
            maker="MediaTek",
            plugin="vendors/mediatek/compiler/libLiteRtCompilerPlugin_MediaTek.so",
            dispatch="",
            sdk="ai-edge-litert-sdk-mediatek",
            sdk_module="ai_edge_litert_sdk_mediatek",
            sdk_source="s3.ap-southeast-1.amazonaws.com",
            socs=tuple(_MEDIATEK.split()),
            precision="the SDK decides",
            limits=(
                "int8 tensors without a scale fall back, as an 8-bit KV cache has them",
                "weights quantised by blocks fall back",
                "where the SDK is newer than 8.2 it is asked too, and may refuse more",
            ),
            source=_ASKED,
        ),
        Vendor(
            name="openvino",
            maker="IntelOpenVINO",
            plugin="vendors/intel_openvino/compiler/libLiteRtCompilerPlugin_IntelOpenvino.so",
            dispatch="vendors/intel_openvino/dispatch/libLiteRtDispatch_IntelOpenvino.so",
            sdk="openvino==2026.3.1",
            sdk_module="openvino",
            sdk_source="",
            socs=("PTL", "LNL"),
            backends=(ON_CPU,),
            precision="as OpenVINO likes best on the device: bfloat16 on a CPU that has it",
            limits=(
                "a graph whose input has 6 dimensions or more is refused whole",
                "for the NPU itself ai-edge-litert-sdk-intel is needed too, which downloads its compiler",
                "a precision asked for when compiling is forgotten: the dispatch library loads with its own",
            ),
            source=_ASKED,
        ),
        Vendor(
            name="google",
            maker="Google",
            plugin="vendors/google_tensor/compiler/libLiteRtCompilerPlugin_google_tensor.so",
            dispatch="",
            sdk="ai-edge-litert-sdk-google-tensor",
            sdk_module="ai_edge_litert_sdk_google_tensor",
            sdk_source="redirector.gvt1.com",
            socs=("Tensor_G3", "Tensor_G4", "Tensor_G5", "Tensor_G6"),
            precision="the SDK decides",
            limits=("which operators it takes the SDK alone knows",),
            source="",
        ),
        Vendor(
            name="samsung",
            maker="Samsung",
            plugin="vendors/samsung/compiler/libLiteRtCompilerPlugin_Samsung.so",
            dispatch="",
            sdk="ai-edge-litert-sdk-samsung-nightly",
            sdk_module="ai_edge_litert_sdk_samsung",
            sdk_source="soc-developer.semiconductor.samsung.com",
            socs=("E9965", "E9955"),
            precision="the SDK decides",
            limits=(
                "the plugin of ai-edge-litert 2.3.0 cannot be loaded: it lacks a symbol of flatbuffers",
                "its SDK package is released as a nightly alone",
            ),
            source="",
        ),
    )
}
JUDGED = tuple(name for name, vendor in VENDORS.items() if vendor.source)


def verdicts(subgraph: Subgraph, vendor: str) -> dict[int, tuple[Refusal, ...]]:
    """Number of each operator -> why the plugin of `vendor`, one of `JUDGED`, leaves it to the CPU, empty
    where it takes it. What makes the plugin give up the whole graph is said of every operator.
    """
    everywhere = whole(subgraph, vendor)
    return {node.number: everywhere + refusals(node, vendor) for node in subgraph.nodes()}


def refusals(node: Node, vendor: str) -> tuple[Refusal, ...]:
    """Why the plugin leaves this operator to the CPU, whatever the rest of its graph is."""
    checks = RULES[vendor].get(node.name)
    if checks is None:
        maker = VENDORS[vendor].maker
        return (Refusal(f"{maker}'s plugin has no such operation", "Replace it by others when exporting."),)
    try:
        return tuple(_found((*checks, *unreadable(vendor)), node))
    except IndexError:
        return (Refusal("it lacks an input, an output or a dimension", "Export it again."),)


def _found(checks: tuple[Check, ...], node: Node) -> list[Refusal]:
    found = (check(node, 0) for check in checks)  # plugins have no feature levels
    return [refusal for refusal in found if refusal is not None]
