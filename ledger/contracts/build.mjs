// Compiles the contracts to artifacts/NAME.json. Usage: node build.mjs [SOURCES [ARTIFACTS]]
// Same sources and pins give the same bytes on any machine: relative names, no metadata.
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { createRequire } from "node:module";

const here = dirname(fileURLToPath(import.meta.url));
const solc = createRequire(import.meta.url)("solc");
const [sources = join(here, "src"), artifacts = join(here, "artifacts")] = process.argv.slice(2);
const NAMES = ["BCT", "DataCredits", "GpuNFT", "PriceOracle", "Settlement"];
const MAX_CODE_BYTES = 24576; // EIP-170

const read = (path) => ({ content: readFileSync(path, "utf8") });
const files = readdirSync(sources, { recursive: true }).filter((name) => name.endsWith(".sol")).sort();
const input = {
  language: "Solidity",
  sources: Object.fromEntries(files.map((name) => [`src/${name}`, read(join(sources, name))])),
  settings: {
    evmVersion: "cancun",
    optimizer: { enabled: true, runs: 200 },
    metadata: { bytecodeHash: "none", appendCBOR: false },
    outputSelection: Object.fromEntries(
      NAMES.map((name) => [`src/${name}.sol`, { [name]: ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"] }]),
    ),
  },
};
const found = (name) => ({ contents: readFileSync(join(here, "node_modules", name), "utf8") });
const output = JSON.parse(solc.compile(JSON.stringify(input), { import: found }));
const ours = (e) => e.severity === "error" || e.sourceLocation?.file.startsWith("src/"); // warnings count in our own files
const problems = (output.errors ?? []).filter(ours);
if (problems.length > 0) {
  for (const problem of problems) console.error(problem.formattedMessage);
  process.exit(1);
}
mkdirSync(artifacts, { recursive: true });
for (const name of NAMES) {
  const contract = output.contracts[`src/${name}.sol`][name];
  const size = contract.evm.deployedBytecode.object.length / 2;
  if (size > MAX_CODE_BYTES) throw new Error(`${name} has ${size} bytes of code; the EVM takes ${MAX_CODE_BYTES}`);
  const artifact = { abi: contract.abi, bytecode: `0x${contract.evm.bytecode.object}` };
  writeFileSync(join(artifacts, `${name}.json`), `${JSON.stringify(artifact, null, 1)}\n`);
  console.log(`${name}: ${size} bytes`);
}
