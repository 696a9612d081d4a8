/** How much memory this process takes while something runs. */
import { readFileSync, writeFileSync } from 'node:fs';

/** Largest resident set of this process while it is watched. */
export class PeakMemory {
  private sampled = process.memoryUsage.rss();
  private readonly kernelCounts = resetHighWater();
  private readonly timer = setInterval(() => this.sample(), 20);

  stop(): void {
    clearInterval(this.timer);
    this.sample();
  }

  bytes(): number {
    return this.sampled;
  }

  private sample(): void {
    const highWater = this.kernelCounts ? highWaterBytes() : 0;
    this.sampled = Math.max(this.sampled, highWater, process.memoryUsage.rss());
  }
}

/** Linux keeps the high-water mark itself and lets a process reset its own. */
function resetHighWater(): boolean {
  try {
    writeFileSync('/proc/self/clear_refs', '5');
    return true;
  } catch {
    return false;
  }
}

function highWaterBytes(): number {
  const match = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'));
  return match ? Number(match[1]) * 1024 : 0;
}
